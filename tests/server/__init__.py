"""What is true of servers alone: methods over the wire, streams, malformed bytes, who may see what."""
