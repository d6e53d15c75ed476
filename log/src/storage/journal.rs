//! A small durable map: committed offsets and producer ids live in one each.
//!
//! Every change is appended to one file and flushed before it shows in the map and before the
//! caller is told; changes that wait share a flush, and a change of several entries happens whole
//! or not at all. When most of the file is history it is written anew. A thread of its own owns the
//! file ([`Workers`] says where it has none), so changes happen in the order in which they were
//! asked for.
//!
//! After a crash the same judgement as for segments: invalid bytes at the end with nothing valid
//! behind them are a change nobody was told of; invalid bytes with a valid change behind them are
//! damage, and the file is refused.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 4 | `TWJL`, once at the front |
//! | version | 2 | 1 |
//! | reserved | 2 | 0 |
//! | per change: checksum | 4 | CRC-32C of the length and what follows it |
//! | length | 4 | bytes after it, at least 9 |
//! | per entry: key length | 4 | |
//! | key | | |
//! | value length | 4 | `0xffffffff` for a removed key |
//! | value | | |
//!
//! All numbers are big-endian.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::Error;
use crate::storage::disk::{self, Disk, DiskFile};
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::{Shared, lock};
use crate::storage::reserve::Reserve;
use crate::workers::{DiskTime, Workers};

const MAGIC: &[u8; 4] = b"TWJL";
const VERSION: u16 = 1;
const FILE_HEADER_BYTES: usize = 8;
const CHANGE_HEADER_BYTES: usize = 8;
/// A change has at least one entry: two lengths and a byte of key.
const LEAST_CHANGE_BYTES: usize = 9;
const REMOVED: u32 = u32::MAX;

/// Changes that may wait: more than that many requests at once have to queue before it.
const WAITING_CHANGES: usize = 256;

/// History that is kept before the file is written anew: small enough to be read in no time.
const HISTORY_BYTES: u64 = 1 << 20;

/// The entries of the map. Keys begin with the kind of their entry.
pub(crate) type Entries = BTreeMap<Vec<u8>, Bytes>;

/// One entry to be set, or removed (`None`).
pub(crate) type Change = (Vec<u8>, Option<Bytes>);

/// A handle on the map and on who owns its file.
#[derive(Debug)]
pub(crate) struct Journal {
    entries: Arc<Mutex<Entries>>,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    hands: Hands,
}

#[derive(Debug)]
enum Hands {
    Thread(Mutex<Option<JoinHandle<()>>>),
    /// A task takes the requests; whoever must block has the writer write at once.
    Task(Arc<Mutex<Writer>>, Mutex<JoinSet<()>>),
}

#[derive(Debug)]
struct Request {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Journal {
    /// Opens the journal at `path`, or makes an empty one.
    ///
    /// # Errors
    /// The system's, and [`Error::Corrupt`].
    pub(crate) fn open(path: &Path, shared: &Shared) -> Result<Self, Error> {
        let disk = Arc::clone(&shared.config.disk);
        let (file, size, found) = open_file(path, &*disk)?;
        let entries = Arc::new(Mutex::new(found));
        let (requests, incoming) = mpsc::channel(WAITING_CHANGES);
        let writer = Writer {
            path: path.to_owned(),
            disk,
            file,
            size,
            entries: Arc::clone(&entries),
            broken: None,
            reserve: Arc::clone(&shared.reserve),
            _folder_lock: Arc::clone(&shared.folder_lock),
        };
        let hands = match &shared.config.workers {
            Workers::Threads => {
                let thread = std::thread::Builder::new()
                    .name("log-journal".to_owned())
                    .spawn(move || writer.run(incoming))
                    .map_err(Error::io("start a thread for", path))?;
                Hands::Thread(Mutex::new(Some(thread)))
            }
            Workers::Tasks(time) => {
                let writer = Arc::new(Mutex::new(writer));
                let mut task = JoinSet::new();
                task.spawn(write_requests(Arc::clone(&writer), incoming, Arc::clone(time)));
                Hands::Task(writer, Mutex::new(task))
            }
        };
        Ok(Self { entries, requests: Mutex::new(Some(requests)), hands })
    }

    /// Looks at the entries, all of which are durable.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Entries) -> T) -> T {
        look(&lock(&self.entries))
    }

    /// Changes entries, all or none, durably.
    ///
    /// # Errors
    /// If it did not happen; if [`Error::passes`] it may be tried again.
    pub(crate) async fn change(&self, changes: Vec<Change>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let requests = lock(&self.requests).clone().ok_or(Error::Closed)?;
        let (done, outcome) = oneshot::channel();
        requests.send(Request { changes, done }).await.map_err(|_| Error::Closed)?;
        outcome.await.map_err(|_| Error::Closed)?
    }

    /// As [`Journal::change`], where blocking is allowed.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(crate) fn change_blocking(&self, changes: Vec<Change>) -> Result<(), Error> {
        let requests = lock(&self.requests).clone().ok_or(Error::Closed)?;
        let (done, mut outcome) = oneshot::channel();
        let request = Request { changes, done };
        match &self.hands {
            Hands::Thread(_) => {
                requests.blocking_send(request).map_err(|_| Error::Closed)?;
                outcome.blocking_recv().map_err(|_| Error::Closed)?
            }
            Hands::Task(writer, _) => {
                lock(writer).round(vec![request]);
                outcome.try_recv().map_err(|_| Error::Closed)?
            }
        }
    }

    /// Finishes what waits and ends the thread; a task ends with what waits. Blocks.
    ///
    /// # Errors
    /// If the thread had ended by a panic.
    pub(crate) fn close(&self) -> Result<(), Error> {
        drop(lock(&self.requests).take());
        match &self.hands {
            Hands::Thread(thread) => match lock(thread).take() {
                Some(thread) => thread.join().map_err(|_| Error::TaskFailed),
                None => Ok(()),
            },
            Hands::Task(_, task) => {
                lock(task).abort_all();
                Ok(())
            }
        }
    }
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    size: u64,
    entries: Arc<Mutex<Entries>>,
    /// Set once what is on the disk is unknown.
    broken: Option<String>,
    reserve: Arc<Reserve>,
    /// Kept until the thread has ended.
    _folder_lock: Arc<FolderLock>,
}

async fn write_requests(
    writer: Arc<Mutex<Writer>>,
    mut incoming: mpsc::Receiver<Request>,
    time: Arc<dyn DiskTime>,
) {
    while let Some(first) = incoming.recv().await {
        tokio::time::sleep(time.next()).await;
        lock(&writer).round(with_waiting(first, &mut incoming));
    }
}

/// A round: `first` and whatever waits behind it.
fn with_waiting(first: Request, incoming: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut round = vec![first];
    while let Ok(more) = incoming.try_recv() {
        round.push(more);
    }
    round
}

impl Writer {
    fn run(mut self, mut incoming: mpsc::Receiver<Request>) {
        while let Some(first) = incoming.blocking_recv() {
            self.round(with_waiting(first, &mut incoming));
        }
    }

    fn round(&mut self, round: Vec<Request>) {
        let outcome = self.write(&round);
        if outcome.is_ok() {
            let mut entries = lock(&self.entries);
            for request in &round {
                apply(&mut entries, &request.changes);
            }
        }
        for request in round {
            let answer = match &outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(self.repeat(error)),
            };
            // The caller may be gone; the change stands.
            drop(request.done.send(answer));
        }
        if outcome.is_ok()
            && let Err(error) = self.shorten()
        {
            tracing::warn!(error = %error.full_text(), "journal not written anew");
        }
    }

    fn write(&mut self, round: &[Request]) -> Result<(), Error> {
        let parts: Vec<Bytes> =
            round.iter().map(|request| encode_change(&request.changes).into()).collect();
        // Offsets that cannot be committed would hold back what makes room on a full disk.
        let reserve = Arc::clone(&self.reserve);
        reserve.spend(|| self.append(&parts))?;
        if let Err(source) = self.file.sync() {
            self.broken = Some(format!("a flush failed: {source}; restart the node"));
            return Err(Error::Io { operation: "flush", path: self.path.clone(), source });
        }
        self.size += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }

    fn append(&mut self, parts: &[Bytes]) -> Result<(), Error> {
        if let Some(broken) = &self.broken {
            return Err(Error::corrupt(&self.path, self.size, broken.clone()));
        }
        if let Err(error) = self.file.write_all_at(parts, self.size) {
            if let Err(cut) = self.file.truncate(self.size) {
                self.broken = Some(format!("a failed write could not be taken back: {cut}"));
            }
            return Err(Error::io("write", &self.path)(error));
        }
        Ok(())
    }

    /// Several requests may share one failure.
    fn repeat(&self, error: &Error) -> Error {
        match error {
            Error::NoSpace { operation, path, source } => {
                Error::NoSpace { operation, path: path.clone(), source: again(source) }
            }
            Error::Exhausted { operation, path, source } => {
                Error::Exhausted { operation, path: path.clone(), source: again(source) }
            }
            other => Error::corrupt(&self.path, self.size, other.full_text()),
        }
    }

    /// Writes the file anew when most of it is history.
    fn shorten(&mut self) -> Result<(), Error> {
        if self.size < HISTORY_BYTES {
            return Ok(());
        }
        let contents = {
            let entries = lock(&self.entries);
            let live: usize = entries.iter().map(|(key, value)| key.len() + value.len() + 16).sum();
            if self.size < 2 * live as u64 + HISTORY_BYTES {
                return Ok(());
            }
            encode_all(&entries)
        };
        let size = contents.len() as u64;
        // Whatever fails up to the rename leaves the old file in use; what follows it changes only
        // the handle, so that no entry is written to a file without a name.
        let file = disk::put_in_place(&self.path, |beside| {
            let file = self.disk.create(beside)?;
            file.write_all_at(&[contents.into()], 0)?;
            file.sync()?;
            Ok(file)
        })?;
        self.file = file;
        self.size = size;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        disk::sync_folder(&*self.disk, folder).inspect_err(|error| {
            let error = error.full_text();
            self.broken = Some(format!("a flush failed: {error}; restart the node"));
        })
    }
}

fn open_file(path: &Path, disk: &dyn Disk) -> Result<(Arc<dyn DiskFile>, u64, Entries), Error> {
    let Some(contents) = disk::read_if_exists(path)? else {
        let empty = encode_all(&Entries::new());
        disk::replace_file(path, &empty)?;
        let file = disk.open(path).map_err(Error::io("open", path))?;
        return Ok((file, empty.len() as u64, Entries::new()));
    };
    let (entries, whole) = decode_all(path, &contents)?;
    let file = disk.open(path).map_err(Error::io("open", path))?;
    if whole < contents.len() {
        file.truncate(whole as u64).map_err(Error::io("cut", path))?;
    }
    // In place, which needs no room: the last change may be one whose flush failed.
    disk::write_again(&*file, path, 0, whole as u64)?;
    Ok((file, whole as u64, entries))
}

fn apply(entries: &mut Entries, changes: &[Change]) {
    for (key, value) in changes {
        match value {
            Some(value) => entries.insert(key.clone(), value.clone()),
            None => entries.remove(key),
        };
    }
}

fn encode_all(entries: &Entries) -> Vec<u8> {
    let mut contents = Vec::new();
    contents.put_slice(MAGIC);
    contents.put_u16(VERSION);
    contents.put_u16(0);
    for (key, value) in entries {
        contents.extend(encode_change(&[(key.clone(), Some(value.clone()))]));
    }
    contents
}

fn encode_change(changes: &[Change]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in changes {
        body.put_u32(length(key));
        body.put_slice(key);
        match value {
            Some(value) => {
                body.put_u32(length(value));
                body.put_slice(value);
            }
            None => body.put_u32(REMOVED),
        }
    }
    let mut checked = Vec::with_capacity(4 + body.len());
    checked.put_u32(length(&body));
    checked.put_slice(&body);
    let mut frame = Vec::with_capacity(4 + checked.len());
    frame.put_u32(crc32c::crc32c(&checked));
    frame.put_slice(&checked);
    frame
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("requests are at most megabytes")
}

/// The entries, and how many bytes of the file are whole changes.
fn decode_all(path: &Path, contents: &[u8]) -> Result<(Entries, usize), Error> {
    let header = contents
        .get(..FILE_HEADER_BYTES)
        .and_then(|header| header.strip_prefix(MAGIC))
        .ok_or_else(|| Error::corrupt(path, 0, "not a journal"))?;
    let version = u16::from_be_bytes([header[0], header[1]]);
    if version != VERSION {
        return Err(Error::FormatVersion {
            path: path.to_owned(),
            found: version.into(),
            supported: VERSION.into(),
        });
    }
    let mut entries = Entries::new();
    let mut position = FILE_HEADER_BYTES;
    while position < contents.len() {
        let Some((changes, bytes)) = decode_change(&contents[position..]) else {
            let behind = (position + 1..contents.len())
                .find(|behind| decode_change(&contents[*behind..]).is_some());
            return match behind {
                None => Ok((entries, position)),
                Some(behind) => Err(Error::corrupt(
                    path,
                    position as u64,
                    format!("a valid change stands behind it, at byte {behind}; restore a copy"),
                )),
            };
        };
        apply(&mut entries, &changes);
        position += bytes;
    }
    Ok((entries, position))
}

fn decode_change(contents: &[u8]) -> Option<(Vec<Change>, usize)> {
    let mut numbers = contents;
    let checksum = numbers.try_get_u32().ok()?;
    let length = usize::try_from(numbers.try_get_u32().ok()?).ok()?;
    let end = CHANGE_HEADER_BYTES.checked_add(length)?;
    let checked = contents.get(4..end)?;
    if length < LEAST_CHANGE_BYTES || crc32c::crc32c(checked) != checksum {
        return None;
    }
    let mut body = &checked[4..];
    let mut changes = Vec::new();
    while !body.is_empty() {
        let key_length = body.try_get_u32().ok()?;
        let key = take(&mut body, key_length)?.to_vec();
        let value = match body.try_get_u32().ok()? {
            REMOVED => None,
            length => Some(Bytes::copy_from_slice(take(&mut body, length)?)),
        };
        changes.push((key, value));
    }
    Some((changes, end))
}

fn take<'a>(body: &mut &'a [u8], length: u32) -> Option<&'a [u8]> {
    let (taken, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
    *body = rest;
    Some(taken)
}

/// The same error once more: it cannot be cloned.
fn again(error: &std::io::Error) -> std::io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FileSystem;
    use crate::storage::testing::{shared, shared_on};

    fn open(path: &Path) -> Result<Journal, Error> {
        Journal::open(path, &shared())
    }

    fn set(key: &str, value: &str) -> Change {
        (key.as_bytes().to_vec(), Some(Bytes::copy_from_slice(value.as_bytes())))
    }

    fn text(journal: &Journal) -> String {
        journal.read(|entries| {
            let pairs: Vec<String> = entries
                .iter()
                .map(|(key, value)| {
                    format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value))
                })
                .collect();
            pairs.join(" ")
        })
    }

    async fn sample(path: &Path) -> Vec<u64> {
        let journal = open(path).unwrap();
        let mut lengths = vec![std::fs::metadata(path).unwrap().len()];
        for changes in [
            vec![set("a", "1")],
            vec![set("b", "2"), set("c", "3")],
            vec![(b"a".to_vec(), None), set("b", "4")],
        ] {
            journal.change(changes).await.unwrap();
            lengths.push(std::fs::metadata(path).unwrap().len());
        }
        journal.close().unwrap();
        lengths
    }

    #[tokio::test]
    async fn a_torn_last_change_is_as_if_it_had_never_been_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let lengths = sample(&path).await;
        let whole = std::fs::read(&path).unwrap();
        let expected = ["", "a=1", "a=1 b=2 c=3", "b=4 c=3"];
        for length in lengths[0]..=lengths[3] {
            std::fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
            let changes = lengths.iter().filter(|whole| **whole <= length).count() - 1;
            let journal = open(&path).unwrap();
            assert_eq!(text(&journal), expected[changes], "cut to {length} bytes");
            journal.change(vec![set("z", "9")]).await.unwrap();
            journal.close().unwrap();
            assert!(text(&open(&path).unwrap()).ends_with("z=9"));
        }
    }

    #[tokio::test]
    async fn damage_before_a_valid_change_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let lengths = sample(&path).await;
        let whole = std::fs::read(&path).unwrap();
        let last = usize::try_from(lengths[2]).unwrap();
        for position in FILE_HEADER_BYTES..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x20;
            std::fs::write(&path, &damaged).unwrap();
            match open(&path) {
                Err(Error::Corrupt { .. }) => assert!(position < last, "byte {position}"),
                Ok(journal) => {
                    assert!(position >= last, "byte {position}");
                    assert_eq!(text(&journal), "a=1 b=2 c=3");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn history_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = open(&path).unwrap();
        let large = "x".repeat(100_000);
        for number in 0..40 {
            journal.change(vec![set("key", &format!("{large}{number}"))]).await.unwrap();
        }
        journal.close().unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < 2 * HISTORY_BYTES);
        assert!(text(&open(&path).unwrap()).ends_with("39"));
    }

    /// Opens files once, and makes none later on.
    #[derive(Debug, Default)]
    struct OpensOnce(std::sync::atomic::AtomicBool);

    impl Disk for OpensOnce {
        fn create(&self, _path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
            Err(std::io::Error::other("no file is made"))
        }

        fn open(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
            if self.0.swap(true, std::sync::atomic::Ordering::Relaxed) {
                return Err(std::io::Error::other("opened before"));
            }
            FileSystem.open(path)
        }

        fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
            FileSystem.sync_folder(path)
        }
    }

    /// A file system that cannot make names durable.
    #[derive(Debug)]
    struct ForgetsNames;

    impl Disk for ForgetsNames {
        fn create(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
            FileSystem.create(path)
        }

        fn open(&self, path: &Path) -> std::io::Result<Arc<dyn DiskFile>> {
            FileSystem.open(path)
        }

        fn sync_folder(&self, _path: &Path) -> std::io::Result<()> {
            Err(std::io::Error::other("no name is kept"))
        }
    }

    #[tokio::test]
    async fn a_journal_whose_new_name_may_be_lost_takes_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        // What a power cut then leaves is the old file, which is whole up to here.
        let before = folder.path().join("before");
        let journal = Journal::open(&path, &shared_on(Arc::new(ForgetsNames))).unwrap();
        std::fs::hard_link(&path, &before).unwrap();
        let large = "x".repeat(100_000);
        let mut taken = 0;
        let error = loop {
            match journal.change(vec![set("key", &format!("{large}{taken}"))]).await {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
            assert!(taken < 100, "it is never written anew");
        };
        assert!(error.full_text().contains("no name is kept"), "{}", error.full_text());
        assert!(journal.change(vec![set("key", "more")]).await.is_err());
        journal.close().unwrap();
        for path in [&before, &path] {
            assert!(text(&open(path).unwrap()).ends_with(&format!("x{}", taken - 1)));
        }
    }

    #[tokio::test]
    async fn a_journal_that_cannot_be_written_anew_keeps_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::open(&path, &shared_on(Arc::new(OpensOnce::default()))).unwrap();
        let large = "x".repeat(100_000);
        for number in 0..40 {
            journal.change(vec![set("key", &format!("{large}{number}"))]).await.unwrap();
        }
        journal.close().unwrap();
        assert!(text(&open(&path).unwrap()).ends_with("39"));
        assert!(std::fs::metadata(&path).unwrap().len() > 2 * HISTORY_BYTES);
    }
}
