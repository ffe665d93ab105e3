"""The commands that `logstep` knows."""
