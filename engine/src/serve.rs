//! The status socket: `.saltern/status` of the (first) directory, where a running engine tells whoever connects how it is.
//!
//! A stream socket, mode 0600. It gives one JSON document, [`Served`], to each connection and closes it; it reads nothing. One thread
//! serves one after the other, and takes no more than a second for each; a document is served for a moment (`SERVED_FOR`) before another is made,
//! so that no number of clients makes the engine describe itself more often.
//!
//! The owner's lock is held when it is made, so a socket that is there already is that of a dead engine, and replaced. It is made under
//! another name, and gets its own when it has its mode. The names of sockets are short (108 bytes with the directory): where the
//! path is longer, both ends go through `/proc/self/fd`.
//!
//! Where there can be no socket, the engine runs without one, with a note.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::ledger::{SALT_PAGE_MAX, SaltUsage};
use crate::status::Status;
use crate::volume::{STATE_DIR, open_dir};

/// Its name in `.saltern`.
const SOCKET: &str = "status";
const SOCKET_NEW: &str = "status.new";

/// Bytes of a socket's path (Linux: `struct sockaddr_un`), its end included.
const PATH_BYTES: usize = 108;

/// How long a document is served before another is made.
const SERVED_FOR: Duration = Duration::from_millis(50);

/// How long a client may take.
const CLIENT_TIME: Duration = Duration::from_secs(1);

/// Salts in a document: those that use most.
const SALTS_MAX: usize = 100;

/// Longest document that a client takes.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// What the socket gives. Fields may be added.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Served {
    /// Version of this document: 1.
    pub schema: u32,
    /// The process.
    pub pid: u32,
    /// When it was made, in nanoseconds since 1970.
    pub now_unix_ns: u64,
    /// How long the engine has been open.
    pub open_seconds: f64,
    /// What [`crate::Engine::status`] says.
    pub status: Status,
    /// The salts that use most, at most 100; the most first.
    pub salts: Vec<SaltUsage>,
}

/// Asks the engine that runs on a directory. Blocks, for some seconds at most.
///
/// # Errors
/// [`Error::Io`] with `ENOENT` or `ECONNREFUSED` when no engine serves there.
pub fn ask(dir: &Path) -> Result<String> {
    let path = dir.join(STATE_DIR).join(SOCKET);
    let at = |error: std::io::Error| Error::file("connect", path.clone(), &error);
    let state = open_dir(&dir.join(STATE_DIR))?;
    let mut stream = UnixStream::connect(short(&path, &state, SOCKET)).map_err(at)?;
    stream.set_read_timeout(Some(2 * CLIENT_TIME)).map_err(at)?;
    let mut document = String::new();
    stream.by_ref().take(DOCUMENT_BYTES_MAX).read_to_string(&mut document).map_err(at)?;
    Ok(document)
}

/// A path that fits into a socket's address.
fn short(path: &Path, state: &OwnedFd, name: &str) -> PathBuf {
    if path.as_os_str().len() < PATH_BYTES {
        return path.to_owned();
    }
    format!("/proc/self/fd/{}/{name}", state.as_raw_fd()).into()
}

/// The thread.
pub(crate) struct Server {
    running: Option<(Arc<EventFd>, JoinHandle<()>, OwnedFd)>,
}

impl Server {
    /// Starts serving, where that is wanted and possible.
    pub(crate) fn start(core: &Arc<Core>) -> Self {
        if !core.config.status_socket {
            return Self { running: None };
        }
        match Self::try_start(core) {
            Ok(running) => Self { running: Some(running) },
            Err(error) => {
                core.note(format!("there is no status socket, `saltern top` cannot see this engine: {error}"));
                Self { running: None }
            }
        }
    }

    fn try_start(core: &Arc<Core>) -> Result<(Arc<EventFd>, JoinHandle<()>, OwnedFd)> {
        let dir = &core.volumes[0].dir;
        let state = dir.state_dir()?;
        let path = dir.path().join(STATE_DIR).join(SOCKET);
        let listener = listen(&path, &state).map_err(|errno| Error::io("bind", path, errno))?;
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|errno| Error::io("eventfd", "(status)", errno))?;
        let stop = Arc::new(stop);
        let (core, told) = (core.clone(), stop.clone());
        let work = move || serve(&core, &listener, &told);
        let thread = std::thread::Builder::new().name("saltern-status".into()).spawn(work);
        Ok((stop, thread.map_err(|error| Error::spawn("saltern-status", &error))?, state))
    }

    /// Ends the thread, and takes the socket away.
    pub(crate) fn stop(&mut self) {
        let Some((stop, thread, state)) = self.running.take() else { return };
        let _ = stop.write(1);
        if thread.join().is_err() {
            tracing::error!("the thread of the status socket had panicked");
        }
        let _ = unlinkat(&state, SOCKET, UnlinkatFlags::NoRemoveDir);
    }
}

/// Makes the socket, in place of one that a dead engine has left.
fn listen(path: &Path, state: &OwnedFd) -> Result<UnixListener, Errno> {
    match fstatat(state, SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK => {}
        // Not a socket: not an engine's.
        Ok(_) => return Err(Errno::EEXIST),
        Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(state, SOCKET_NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    let to_errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
    let listener = UnixListener::bind(short(&path.with_extension("new"), state, SOCKET_NEW)).map_err(to_errno)?;
    listener.set_nonblocking(true).map_err(to_errno)?;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmodat(state, SOCKET_NEW, mode, FchmodatFlags::FollowSymlink)
        .and_then(|()| renameat(state, SOCKET_NEW, state, SOCKET))
        .inspect_err(|_| {
            let _ = unlinkat(state, SOCKET_NEW, UnlinkatFlags::NoRemoveDir);
        })?;
    Ok(listener)
}

fn serve(core: &Core, listener: &UnixListener, stop: &EventFd) {
    let opened = Instant::now();
    let mut made: Option<(Instant, Vec<u8>)> = None;
    loop {
        let mut fds = [listener.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return tracing::error!(%errno, "the status socket is not served any more"),
        }
        if fds[1].any().unwrap_or(true) {
            return;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        if made.as_ref().is_none_or(|(when, _)| when.elapsed() >= SERVED_FOR) {
            made = Some((Instant::now(), document(core, opened)));
        }
        if let Some((_, document)) = &made {
            hand_over(&stream, document, stop.as_fd());
        }
    }
}

fn document(core: &Core, opened: Instant) -> Vec<u8> {
    let served = Served {
        schema: 1,
        pid: std::process::id(),
        now_unix_ns: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64),
        open_seconds: opened.elapsed().as_secs_f64(),
        status: core.status(),
        salts: largest_salts(core),
    };
    serde_json::to_vec(&served).unwrap_or_default()
}

fn largest_salts(core: &Core) -> Vec<SaltUsage> {
    let (mut largest, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let page = core.ledger().page(from, SALT_PAGE_MAX);
        largest.extend(page.salts);
        largest.sort_by(|a, b| (b.used_bytes, &a.salt).cmp(&(a.used_bytes, &b.salt)));
        largest.truncate(SALTS_MAX);
        next = page.next;
    }
    largest
}

/// Sends a document. A client that is slow, or gone, is let go.
fn hand_over(stream: &UnixStream, mut document: &[u8], stop: BorrowedFd<'_>) {
    let deadline = Instant::now() + CLIENT_TIME;
    while !document.is_empty() {
        // A host may have left SIGPIPE as it was.
        match send(stream.as_raw_fd(), document, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(sent) => document = &document[sent..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT), PollFd::new(stop, PollFlags::POLLIN)];
                let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::ZERO);
                if left.is_zero() || !poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) || fds[1].any() == Some(true)
                {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
