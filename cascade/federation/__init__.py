"""What devices and the coordinator of federated rounds share: words of the protocol, the plan, what
signatures cover. Nothing here knows gRPC."""
