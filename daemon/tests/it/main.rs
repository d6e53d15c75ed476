//! The whole program between real databases.

#[cfg(test)]
mod checks;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod cluster_cli;
#[cfg(test)]
mod cluster_pipelines;
#[cfg(test)]
mod cluster_writers;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod foreign;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod lag;
#[cfg(test)]
mod large;
#[cfg(test)]
mod losses;
#[cfg(test)]
mod numbers;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod pairs;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod resync;
#[cfg(test)]
mod schemas;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod standby;
#[cfg(test)]
mod unbounded;
#[cfg(test)]
mod verifying;
#[cfg(test)]
mod workload;
#[cfg(test)]
mod world;
