//! Generations that the controller counts.

use std::fmt;

macro_rules! generation {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name($inner);

        impl $name {
            pub(crate) const fn new(value: $inner) -> Self {
                Self(value)
            }

            pub(crate) const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

generation! {
    /// A registration of a broker: rises each time that it starts.
    BrokerEpoch(i64)
}

generation! {
    /// A state of a partition: rises with every change.
    PartitionEpoch(i32)
}
