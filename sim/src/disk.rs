//! A disk that loses what was not flushed.
//!
//! The files are real ones, in a folder per life of a node, and hold what a running system shows.
//! Beside them stands for each what a power cut leaves: what was flushed, and of the rest some
//! pages, in any order, each as it was after some of the writes to it. A new life begins in a new
//! folder with that image, so whatever is left of the old one writes to files that nobody reads.
//!
//! Files that the log does not write through its `Disk` are replaced whole and flushed; those it
//! does not flush are caches, which an image may lose.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tailwater_log::{Disk, DiskFile, DiskTime, FileSystem};
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::dice::ms;
use crate::image::Content;
use crate::plant::Plant;
use crate::world::World;

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process: the system has everything that was written.
    Process,
    /// The machine: what was not flushed is lost, or not.
    Power,
    /// The machine and what was on its disk.
    Disk,
}

/// How likely each call fails, while things go wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DiskFaults {
    pub(crate) power_cut: f64,
    pub(crate) no_space: f64,
    pub(crate) failed_flush: f64,
}

/// What an image is made of, by inode.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    files: BTreeMap<u64, Content>,
    /// New files whose names are not flushed, and the names they were made under.
    names: BTreeMap<u64, PathBuf>,
}

/// The disk of one life of a node. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    life: Arc<Life>,
}

#[derive(Debug)]
struct Life {
    name: String,
    root: PathBuf,
    next_root: PathBuf,
    world: World,
    dice: Dice,
    faults: DiskFaults,
    off: CancellationToken,
    slow: AtomicBool,
    has_failed: AtomicBool,
    unflushed: Mutex<Unflushed>,
    left: Mutex<Option<Unflushed>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    PowerCut,
    NoSpace,
    FailedFlush,
}

impl SimDisk {
    /// The disk of life number `life` of `name`, which begins with what the last one `left`.
    pub(crate) fn new(
        world: &World,
        name: &str,
        life: usize,
        faults: DiskFaults,
        left: Unflushed,
    ) -> Self {
        let root = |life: usize| PathBuf::from(format!("{name}.{life}"));
        Self {
            life: Arc::new(Life {
                name: name.to_owned(),
                root: root(life),
                next_root: root(life + 1),
                world: world.clone(),
                dice: world.dice(&format!("{name} disk {life}")),
                faults,
                off: CancellationToken::new(),
                slow: AtomicBool::new(false),
                has_failed: AtomicBool::new(false),
                unflushed: Mutex::new(left),
                left: Mutex::default(),
            }),
        }
    }

    /// The folder of this life.
    pub(crate) fn root(&self) -> &Path {
        &self.life.root
    }

    /// Cancelled when this life has ended.
    pub(crate) fn off(&self) -> &CancellationToken {
        &self.life.off
    }

    /// Whether it has answered with an error: the node may be in trouble until it starts anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.life.has_failed.load(Ordering::Relaxed)
    }

    /// Has it take long, or no longer.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.life.slow.store(slow, Ordering::Relaxed);
    }

    /// Ends this life, if it has not ended: the next one's folder is there afterwards.
    pub(crate) fn end(&self, end: End) {
        self.life.end(end);
    }

    /// What the next life begins with, once this one has ended.
    pub(crate) fn take_left(&self) -> Unflushed {
        lock(&self.life.left).take().unwrap_or_default()
    }

    fn opened(&self, path: &Path, file: Arc<dyn DiskFile>) -> io::Result<Arc<dyn DiskFile>> {
        let inode = fs::metadata(path)?.ino();
        let label = path.strip_prefix(&self.life.root).unwrap_or(path).display().to_string();
        let known = lock(&self.life.unflushed).files.contains_key(&inode);
        if !known {
            // What was there before was flushed by whoever made it.
            let content = Content::flushed(fs::read(path)?);
            lock(&self.life.unflushed).files.insert(inode, content);
        }
        Ok(Arc::new(SimFile { life: Arc::clone(&self.life), file, inode, label }))
    }
}

impl Life {
    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.world.trace.note(&self.name, what);
    }

    /// What becomes of a call; `Err` once the power is off.
    fn fate(&self, call: &str, on: &str, is_flush: bool) -> io::Result<Fate> {
        if self.off.is_cancelled() {
            return Err(io::Error::other("the power is off"));
        }
        let fate = self.throw(is_flush);
        self.note(format_args!("{call} {on}: {fate:?}"));
        if fate == Fate::NoSpace || fate == Fate::FailedFlush {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        Ok(fate)
    }

    fn throw(&self, is_flush: bool) -> Fate {
        if !self.world.has_faults() {
            return Fate::Works;
        }
        let throw = self.dice.fraction();
        let DiskFaults { power_cut, no_space, mut failed_flush } = self.faults;
        // Two of three that lose what they had are one too many: nobody may lead then, and rightly so.
        if self.world.has_lost_disk() {
            failed_flush = 0.0;
        }
        let (other, kind) =
            if is_flush { (failed_flush, Fate::FailedFlush) } else { (no_space, Fate::NoSpace) };
        if throw < power_cut {
            Fate::PowerCut
        } else if throw < power_cut + other {
            kind
        } else {
            Fate::Works
        }
    }

    fn end(&self, end: End) {
        if self.off.is_cancelled() {
            return;
        }
        self.note(format_args!("ends: {end:?}"));
        let unflushed = std::mem::take(&mut *lock(&self.unflushed));
        let mut left = Unflushed::default();
        if end != End::Disk
            && self.root.exists()
            && let Err(error) = self.copy(&self.root, &self.next_root, end, &unflushed, &mut left)
        {
            self.world.fail(format!("the simulator could not copy {}: {error}", self.name));
        }
        *lock(&self.left) = Some(left);
        self.off.cancel();
    }

    /// Puts what is left of folder `from` into `to`.
    fn copy(
        &self,
        from: &Path,
        to: &Path,
        end: End,
        unflushed: &Unflushed,
        left: &mut Unflushed,
    ) -> io::Result<()> {
        fs::create_dir_all(to)?;
        let mut entries: Vec<fs::DirEntry> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, copy) = (entry.path(), to.join(entry.file_name()));
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                self.copy(&path, &copy, end, unflushed, left)?;
                continue;
            }
            let content = unflushed.files.get(&metadata.ino());
            let name = unflushed.names.get(&metadata.ino()).filter(|made| **made == path);
            if end == End::Process {
                fs::copy(&path, &copy)?;
                let inode = fs::metadata(&copy)?.ino();
                if let Some(content) = content {
                    left.files.insert(inode, content.clone());
                }
                if name.is_some() {
                    left.names.insert(inode, copy);
                }
                continue;
            }
            if name.is_some() && self.dice.chance(0.5) {
                self.note(format_args!("lost {}", path.display()));
                continue;
            }
            let written = fs::read(&path)?;
            let length = written.len();
            let kept = match content {
                Some(content) => content.after_power_cut(&self.dice),
                None => self.cache_after_power_cut(&path, written),
            };
            if content.is_some() || kept.len() < length {
                let name = path.display();
                self.note(format_args!("keeps {} of {length} bytes of {name}", kept.len()));
            }
            fs::write(&copy, kept)?;
        }
        Ok(())
    }

    /// What is never flushed may be anything.
    fn cache_after_power_cut(&self, path: &Path, mut bytes: Vec<u8>) -> Vec<u8> {
        let is_cache = path.extension().is_some_and(|it| it == "index" || it == "producers");
        if is_cache && self.dice.chance(0.1) {
            bytes.truncate(self.dice.pick(0..bytes.len() + 1));
        }
        bytes
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let fate = self.life.fate("create", &path.display().to_string(), false)?;
        if fate == Fate::NoSpace {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let is_new = !path.exists();
        let file = FileSystem.create(path)?;
        let inode = fs::metadata(path)?.ino();
        {
            let mut unflushed = lock(&self.life.unflushed);
            if is_new {
                unflushed.names.insert(inode, path.to_owned());
                unflushed.files.insert(inode, Content::flushed(Vec::new()));
            } else if let Some(content) = unflushed.files.get_mut(&inode) {
                content.cut(0);
            }
        }
        if fate == Fate::PowerCut {
            self.end(End::Power);
            return Err(io::Error::other("the power is off"));
        }
        self.opened(path, file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = FileSystem.open(path)?;
        self.opened(path, file)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let fate = self.life.fate("flush folder", &path.display().to_string(), true)?;
        if fate == Fate::FailedFlush {
            return Err(io::Error::other("the folder could not be flushed"));
        }
        let comes_first = fate == Fate::PowerCut && self.life.dice.chance(0.5);
        if !comes_first {
            let names = &mut lock(&self.life.unflushed).names;
            names.retain(|_, made| made.parent() != Some(path));
        }
        if fate == Fate::PowerCut {
            self.end(End::Power);
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }
}

impl DiskTime for SimDisk {
    fn next(&self) -> Duration {
        let slow = self.life.slow.load(Ordering::Relaxed) && self.life.world.has_faults();
        let times = if slow { ms(50)..ms(3000) } else { Duration::from_micros(50)..ms(5) };
        self.life.dice.time(times)
    }
}

#[derive(Debug)]
struct SimFile {
    life: Arc<Life>,
    file: Arc<dyn DiskFile>,
    inode: u64,
    label: String,
}

impl SimFile {
    fn with_content(&self, change: impl FnOnce(&mut Content)) {
        if let Some(content) = lock(&self.life.unflushed).files.get_mut(&self.inode) {
            change(content);
        }
    }

    fn outcome(&self, fate: Fate) -> io::Result<()> {
        if fate == Fate::PowerCut {
            self.life.end(End::Power);
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        if self.life.off.is_cancelled() {
            return Err(io::Error::other("the power is off"));
        }
        self.file.read_at(buffer, position)
    }

    fn write_all_at(&self, parts: &[Bytes], position: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let what = format!("{}+{} of {}", position, bytes.len(), self.label);
        let fate = self.life.fate("write", &what, false)?;
        let written = match fate {
            Fate::NoSpace => self.life.dice.pick(0..bytes.len() + 1),
            _ => bytes.len(),
        };
        let bytes = Bytes::from(bytes).slice(..written);
        self.file.write_all_at(std::slice::from_ref(&bytes), position)?;
        self.with_content(|content| content.write(position, bytes));
        if fate == Fate::NoSpace {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.outcome(fate)
    }

    fn sync(&self) -> io::Result<()> {
        let fate = self.life.fate("flush", &self.label, true)?;
        let comes_first = fate == Fate::PowerCut && self.life.dice.chance(0.5);
        match fate {
            Fate::FailedFlush => {
                self.with_content(|content| content.fail_flush(&self.life.dice));
                return Err(io::Error::other("input/output error"));
            }
            _ if comes_first || self.life.world.plant == Some(Plant::DiskLies) => {}
            _ => self.with_content(Content::flush),
        }
        self.outcome(fate)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let fate = self.life.fate("cut", &format!("{} to {length}", self.label), false)?;
        if fate == Fate::NoSpace {
            // Cutting takes no space.
            self.life.note(format_args!("has space for it"));
        }
        self.file.truncate(length)?;
        self.with_content(|content| content.cut(length));
        self.outcome(fate)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
