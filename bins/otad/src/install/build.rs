//! Builds a generation, and removes what is not needed any more.
//!
//! Invariants: nothing has its final name before all below it is durable; a refusal or an error leaves everything as it
//! was, but for a temporary that the next build removes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use edge::beneath::Root;
use edge::release::Sha256;

use super::disk::{Room, entries, make_folder, remove_file, remove_tree, set_mode};
use super::extract::{self, Caps};
use super::record::short;
use super::takeover::Looked;
use super::{Blob, Error, GenFile, GenId, Item, Kind, Manifest, State, Store, Tree};

/// Mode of our folders: the apps' own users read them.
const FOLDER_MODE: u32 = 0o755;
/// Mode of the content of a handler.
pub(super) const FILE_MODE: u32 = 0o644;
/// Read at a time.
const BUFFER: usize = 128 << 10;

impl Store {
    /// Builds the generation of a manifest whose content is here, or is that of a generation that is kept. It is durable
    /// then, and nothing has changed for the apps. What is taken over and was not inspected yet ([`Store::inspect`]) is
    /// looked at first; what is damaged counts as lacking.
    ///
    /// # Errors
    /// A trial is going on; the manifest is quarantined or goes below a mark; content is lacking; there is no space;
    /// an archive holds what must not be; the disk fails.
    pub fn build(&mut self, manifest: &Manifest) -> Result<GenId, Error> {
        if matches!(self.record.state, State::Trial { .. }) {
            return Err(Error::refused("an update is being tried: nothing else is built meanwhile"));
        }
        self.check_allowed(manifest)?;
        self.built = None;
        self.remove_unused_generations()?;
        let new = self.disk.path("gens/.new");
        remove_tree(&new)?;
        let id = GenId::new(self.next_number()?, &manifest.hash());
        self.look_over(manifest, &AtomicBool::new(false))?;
        let filled = self.fill(manifest, &new).inspect_err(|_| {
            // The first error is the one to report; the next build removes what is left.
            let _ = remove_tree(&new);
        });
        self.looked = Looked::default();
        let file = filled?;
        // From here on apps may touch it.
        self.proven.clear();
        let to = self.disk.generation(&id);
        std::fs::rename(&new, &to).map_err(Error::io("rename something to", &to))?;
        edge::fs::fsync_dir(&self.disk.path("gens"))?;
        self.known.insert(id, file);
        self.built = Some(id);
        Ok(id)
    }

    /// Whether a manifest may be installed at all.
    ///
    /// # Errors
    /// [`Error::Refused`] names the item and the mark.
    pub fn check_allowed(&self, manifest: &Manifest) -> Result<(), Error> {
        let hash = manifest.hash();
        if let Some(known) = self.quarantine.iter().find(|known| known.hash == hash) {
            let why = short(&known.why);
            return Err(Error::refused(format!("this manifest is quarantined since {}: {why}", known.at)));
        }
        for Item { app, env, epoch, .. } in manifest.items() {
            let mark = self.high_water(app, env);
            if *epoch < mark.epoch.max(mark.min_epoch) {
                let (committed, floor) = (mark.epoch, mark.min_epoch);
                return Err(Error::refused(format!(
                    "{app} ({env}): epoch {epoch} is older than what was committed (epoch {committed}, floor {floor})"
                )));
            }
        }
        Ok(())
    }

    fn next_number(&self) -> Result<u64, Error> {
        let on_disk =
            self.disk.names("gens")?.iter().filter_map(|name| Some(name.parse::<GenId>().ok()?.number)).max();
        let known = self.known.keys().map(|id| id.number).max();
        let past = self.history.iter().map(|outcome| outcome.generation.number).max();
        Ok(on_disk.max(known).max(past).unwrap_or(0) + 1)
    }

    fn fill(&self, manifest: &Manifest, new: &Path) -> Result<GenFile, Error> {
        let sources = manifest.items().iter().map(|item| self.source(item)).collect::<Result<Vec<_>, _>>()?;
        let mut room = Room::new(&self.disk.dir, self.limits.free_bytes_min);
        let need = sources.iter().map(Source::bytes).fold(0, u64::saturating_add);
        room.check(need)?;
        make_folder(new, FOLDER_MODE)?;
        let mut trees = BTreeMap::new();
        for (item, source) in manifest.items().iter().zip(sources) {
            let to = new.join(&item.app);
            let tree = match (source, item.kind) {
                (Source::Folder(from, tree), _) => link_tree(&from, &to).map(|()| tree)?,
                (Source::Content(blob, _), Kind::Tar) => Some(self.unpack(item, &blob, &to, &mut room)?),
                (Source::Content(blob, _), kind) => {
                    let mode = if let Kind::File { mode } = kind { mode } else { FILE_MODE };
                    make_folder(&to, FOLDER_MODE)?;
                    link_file(&blob.path, &to.join(&item.app), mode).map(|()| None)?
                }
            };
            trees.extend(tree.map(|tree| (item.app.clone(), tree)));
        }
        let file = GenFile { manifest: manifest.clone(), marks: self.marks.clone(), trees };
        let path = new.join(".manifest");
        std::fs::write(&path, file.encode()).map_err(Error::io("write", &path))?;
        self.disk.flush_tree(new)?;
        Ok(file)
    }

    fn source(&self, item: &Item) -> Result<Source, Error> {
        let folder = |id: GenId| {
            let tree = self.known.get(&id).and_then(|file| file.trees.get(&item.app).copied());
            Ok(Source::Folder(self.app_dir(&id, &item.app), tree))
        };
        if let Some(id) = self.folder_for(item) {
            return folder(id);
        }
        let Some(blob) = self.blob(&item.sha256) else {
            let lacking = || Error::Lacking { app: item.app.clone(), sha256: item.sha256 };
            return self.accepted_folder_for(item).map_or_else(|| Err(lacking()), folder);
        };
        if blob.size != item.size {
            let (expected, got) = (item.size.to_string(), blob.size.to_string());
            return Err(Error::Content { what: "its length in bytes", expected, got });
        }
        let bytes = if item.kind == Kind::Tar { expanded(&blob)? } else { 0 };
        Ok(Source::Content(blob, bytes))
    }

    fn unpack(&self, item: &Item, blob: &Blob, to: &Path, room: &mut Room) -> Result<Tree, Error> {
        make_folder(to, FOLDER_MODE)?;
        let caps = Caps {
            bytes_max: self.limits.expanded_bytes_max,
            files_max: self.limits.files_max,
            depth_max: self.limits.depth_max,
        };
        let file = File::open(&blob.path).map_err(Error::io("open", &blob.path))?;
        let root = Root::open(to)?;
        extract::unpack(BufReader::with_capacity(BUFFER, file), root, caps, &mut |bytes| room.spend(bytes))
            .map_err(|error| match error {
                Error::Archive { entry, why } => {
                    Error::Archive { entry: format!("{}: {entry}", item.app), why }
                }
                other => other,
            })
    }

    /// Removes content that no kept generation uses and that is not among `wanted`, partial files too. Nothing that the
    /// apps run is touched.
    ///
    /// # Errors
    /// The disk fails.
    pub fn gc(&mut self, wanted: &[Sha256]) -> Result<(), Error> {
        self.remove_unused_generations()?;
        let used = self.known.values().flat_map(|file| file.manifest.items());
        // An archive is not needed once it is unpacked: what stays the same is linked from the generation.
        let used = used.filter(|item| item.kind != Kind::Tar).map(|item| item.sha256);
        let used: BTreeSet<String> = used.chain(wanted.iter().copied()).map(|sum| sum.to_string()).collect();
        self.proven.clear();
        let mut removed = false;
        for name in self.disk.names("blobs")? {
            let content = name.strip_suffix(".part").unwrap_or(&name);
            if !used.contains(content) && !name.starts_with(".incoming-") {
                remove_file(&self.disk.path("blobs").join(&name))?;
                removed = true;
            }
        }
        if removed { Ok(edge::fs::fsync_dir(&self.disk.path("blobs"))?) } else { Ok(()) }
    }

    /// Generations that are neither kept nor tried nor just built.
    pub(super) fn remove_unused_generations(&mut self) -> Result<(), Error> {
        let mut used: BTreeSet<GenId> = self.record.kept.iter().copied().chain(self.built).collect();
        match self.record.state {
            State::Settled { current } => used.extend(current),
            State::Trial { from, to, .. } => used.extend(from.into_iter().chain([to])),
        }
        used.extend(self.disk.current());
        self.known.retain(|id, _| used.contains(id));
        for id in self.disk.names("gens")?.iter().filter_map(|name| name.parse().ok()) {
            if !used.contains(&id) {
                self.disk.remove_generation(&id)?;
            }
        }
        Ok(())
    }
}

/// Where an app's folder comes from.
enum Source {
    /// A generation that is kept.
    Folder(PathBuf, Option<Tree>),
    /// Content, and the bytes it is likely to expand to.
    Content(Blob, u64),
}

impl Source {
    fn bytes(&self) -> u64 {
        match self {
            Source::Folder(..) => 0,
            Source::Content(_, bytes) => *bytes,
        }
    }
}

/// What an archive is likely to expand to. For gzip its last four bytes say it (modulo 4 GiB).
fn expanded(blob: &Blob) -> Result<u64, Error> {
    let read = || -> std::io::Result<u64> {
        let mut file = File::open(&blob.path)?;
        let mut magic = [0; 2];
        if blob.size < 18 || file.read_exact(&mut magic).is_err() || magic != extract::GZIP {
            return Ok(blob.size);
        }
        let mut tail = [0; 4];
        file.seek(SeekFrom::End(-4))?;
        file.read_exact(&mut tail)?;
        Ok(blob.size.max(u64::from(u32::from_le_bytes(tail))))
    };
    read().map_err(Error::io("read", &blob.path))
}

/// A second name for the content. The mode belongs to the file, not to its name: where others use it with another one,
/// or the file system has no more links for it, it is copied.
fn link_file(blob: &Path, to: &Path, mode: u32) -> Result<(), Error> {
    let meta = std::fs::symlink_metadata(blob).map_err(Error::io("look at", blob))?;
    if meta.permissions().mode() & 0o7777 != mode {
        if meta.nlink() > 1 {
            return copy_file(blob, to, mode);
        }
        set_mode(blob, mode)?;
    }
    match std::fs::hard_link(blob, to) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {
            copy_file(blob, to, mode)
        }
        linked => linked.map_err(Error::io("link the content to", to)),
    }
}

fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<(), Error> {
    let mut source = File::open(from).map_err(Error::io("open", from))?;
    let mut copy = File::options().write(true).create_new(true).open(to).map_err(Error::io("create", to))?;
    std::io::copy(&mut source, &mut copy).map_err(Error::io("copy the content to", to))?;
    set_mode(to, mode)
}

/// The same folder once more, its files and links by second names.
fn link_tree(from: &Path, to: &Path) -> Result<(), Error> {
    make_folder(to, FOLDER_MODE)?;
    for (path, meta) in entries(from)? {
        let name = to.join(path.file_name().unwrap_or_default());
        if meta.is_dir() {
            link_tree(&path, &name)?;
        } else {
            link_again(&path, &name, &meta)?;
        }
    }
    Ok(())
}

fn link_again(path: &Path, name: &Path, meta: &Metadata) -> Result<(), Error> {
    match std::fs::hard_link(path, name) {
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) && meta.is_file() =>
        {
            copy_file(path, name, meta.permissions().mode() & 0o755)
        }
        linked => linked.map_err(Error::io("link an unchanged file to", name)),
    }
}
