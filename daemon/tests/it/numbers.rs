//! What was acknowledged against what is there, for producers that write numbers.
//!
//! Each client writes 0, 1, 2, … to each partition. In the end every number must be there once and
//! in order, and every acknowledged one at the offset that was acknowledged.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tailwater_scratch::{Acknowledged, Client};

/// A record of the topic: who wrote which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    partition: i32,
    offset: i64,
    client: Client,
    number: u64,
}

/// Reads the whole topic with kcat, which asks `address` who leads; by partition and offset.
pub(crate) fn read(address: &str, topic: &str) -> Result<Vec<Stored>> {
    let mut kcat = Command::new("kcat");
    kcat.args(["-C", "-b", address, "-t", topic, "-o", "beginning", "-e", "-q"]);
    kcat.args(["-X", "check.crcs=true", "-f", "%p %o %s\\n"]);
    let output = kcat.output().context("run kcat (Debian and Ubuntu: kcat)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kcat: {errors}");
    let text = String::from_utf8(output.stdout).context("numbers are text")?;
    let mut stored = text.lines().map(parse).collect::<Result<Vec<_>>>()?;
    stored.sort_unstable_by_key(|record| (record.partition, record.offset));
    Ok(stored)
}

/// `PARTITION OFFSET CLIENT NUMBER`
fn parse(line: &str) -> Result<Stored> {
    let [partition, offset, client, number] = line.split(' ').collect::<Vec<_>>()[..] else {
        bail!("not a record of ours: {line}");
    };
    let client = Client::ALL.into_iter().find(|known| known.name() == client);
    Ok(Stored {
        partition: partition.parse()?,
        offset: offset.parse()?,
        client: client.with_context(|| format!("who wrote {line:?}"))?,
        number: number.parse()?,
    })
}

/// Every acknowledged record is stored, where it was said to be; every number once and in order.
pub(crate) fn check(
    stored: &[Stored],
    acknowledged: &BTreeMap<Client, Vec<Acknowledged>>,
) -> Result<()> {
    let mut next: BTreeMap<(Client, i32), u64> = BTreeMap::new();
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    let mut offsets = HashMap::new();
    for record in stored {
        let before = last.insert(record.partition, record.offset);
        ensure!(before.is_none_or(|before| before < record.offset), "an offset twice: {record:?}");
        let expected = next.entry((record.client, record.partition)).or_default();
        ensure!(
            record.number == *expected,
            "number {expected} should be next, it is lost, repeated or out of order: {record:?}"
        );
        *expected += 1;
        offsets.insert((record.client, record.partition, record.number), record.offset);
    }
    for (client, acknowledged) in acknowledged {
        for one in acknowledged {
            let offset = offsets.get(&(*client, one.partition, one.number));
            let offset = offset.with_context(|| format!("lost: {} {one:?}", client.name()))?;
            ensure!(
                one.offset < 0 || one.offset == *offset,
                "it is at {offset}: {} {one:?}",
                client.name()
            );
        }
    }
    Ok(())
}

/// How long each partition went without an acknowledgement, at most, from `since` until `until`, µs;
/// for ever if there was none any more.
pub(crate) fn silences(
    acknowledged: &[Acknowledged],
    partitions: &[i32],
    since: u64,
    until: u64,
) -> Vec<u64> {
    let mut silences = Vec::new();
    for partition in partitions {
        let of_partition = acknowledged.iter().filter(|one| one.partition == *partition);
        let mut times: Vec<u64> =
            of_partition.map(|one| one.at_us).filter(|at| *at > since).collect();
        times.sort_unstable();
        let mut longest = 0;
        let mut before = since;
        for at in times {
            longest = longest.max(at.min(until) - before);
            before = at;
            if at >= until {
                break;
            }
        }
        silences.push(if before == since { u64::MAX } else { longest });
    }
    silences
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records of one partition, in its order: client and number.
    fn stored(records: &[(Client, u64)]) -> Vec<Stored> {
        (0..)
            .zip(records)
            .map(|(offset, (client, number))| Stored {
                partition: 0,
                offset,
                client: *client,
                number: *number,
            })
            .collect()
    }

    fn acknowledged(client: Client, all: &[(i64, u64)]) -> BTreeMap<Client, Vec<Acknowledged>> {
        let one = |(offset, number): &(i64, u64)| Acknowledged {
            partition: 0,
            offset: *offset,
            number: *number,
            at_us: 0,
        };
        BTreeMap::from([(client, all.iter().map(one).collect())])
    }

    fn problem(records: &[(Client, u64)], all: &[(i64, u64)]) -> String {
        let checked = check(&stored(records), &acknowledged(Client::Java, all));
        checked.unwrap_err().to_string()
    }

    #[test]
    fn two_clients_in_order_are_right() {
        let records = [(Client::Java, 0), (Client::Librdkafka, 0), (Client::Java, 1)];
        check(&stored(&records), &acknowledged(Client::Java, &[(0, 0), (2, 1)])).unwrap();
        // Where it could not say.
        check(&stored(&records), &acknowledged(Client::Java, &[(-1, 1)])).unwrap();
    }

    #[test]
    fn what_is_lost_repeated_reordered_or_elsewhere_is_seen() {
        use Client::Java;
        assert!(problem(&[(Java, 0), (Java, 1)], &[(2, 2)]).starts_with("lost"));
        for wrong in [[0, 2].as_slice(), &[0, 0], &[0, 1, 1], &[0, 2, 1], &[1]] {
            let records: Vec<_> = wrong.iter().map(|number| (Java, *number)).collect();
            let said = problem(&records, &[]);
            assert!(said.contains("should be next"), "{wrong:?}: {said}");
        }
        assert!(problem(&[(Java, 0), (Java, 1)], &[(0, 1)]).starts_with("it is at 1"));
    }

    #[test]
    fn a_silence_begins_with_the_loss_and_ends_with_a_later_acknowledgement() {
        let at = |at_us| Acknowledged { partition: 0, offset: 0, number: 0, at_us };
        let acknowledged = [90, 101, 150, 160, 300, 900].map(at);
        assert_eq!(silences(&acknowledged, &[0], 100, 160), [49]);
        assert_eq!(silences(&acknowledged, &[0], 100, 300), [140]);
        assert_eq!(silences(&acknowledged, &[0, 1], 100, 301), [140, u64::MAX]);
    }
}
