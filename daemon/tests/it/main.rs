//! The whole program between real databases.

#[cfg(test)]
mod foreign;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod large;
#[cfg(test)]
mod pairs;
#[cfg(test)]
mod workload;
#[cfg(test)]
mod world;
