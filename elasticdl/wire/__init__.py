"""What processes say to each other: elasticdl.proto, its generated code, and rpc."""
