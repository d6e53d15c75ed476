//! What flows: places, values, schemas, the envelope codec.
