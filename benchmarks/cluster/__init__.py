"""What a cluster on this machine does under load, and when parts of it are killed: real gRPC
clients in a process of their own, Ray and its replicas below another one."""
