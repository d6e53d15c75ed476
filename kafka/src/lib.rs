//! How it is spoken: wire, record batches, client.
