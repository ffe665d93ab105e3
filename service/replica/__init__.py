"""A node of several: a Kafka topic is the log, and every node applies its records in order."""
