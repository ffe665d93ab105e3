"""The commands of `logstep`."""
