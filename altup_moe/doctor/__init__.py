"""`altup-moe doctor`: could a run start here? Versions, devices, network, disk, and a collective on two ranks."""
