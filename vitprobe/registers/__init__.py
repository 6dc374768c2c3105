"""Put registers into a backbone: trained ones (`vitprobe.registers.insert`)."""
