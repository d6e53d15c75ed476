//! Scratch servers do what tests rely on: every flavor, start to end.

#[cfg(test)]
mod disk;
#[cfg(test)]
mod dump;
#[cfg(test)]
mod kafka;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod server;
