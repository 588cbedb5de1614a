//! Kinesis through its one entrance, on paused time.
