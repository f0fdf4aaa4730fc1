//! What an engine takes away with it when its objects are not to stay (`persist = false`): the files of what it has
//! stored itself, and those that it keeps to be overwritten. What it has found stays, whoever wrote it.

use crate::core::Core;

/// Removes the files. Called when no shard runs any more, and the directory's lock is still held.
pub(crate) fn take_away(core: &Core) {
    let own = core.index.lock_all().own();
    for (key, volume) in own {
        let dir = &core.volumes[volume].dir;
        let Ok(name) = core.config.layout.encode(&key) else { continue };
        // What is not a regular file has taken the name since: not ours.
        let removed = match dir.stat(&name) {
            Ok(Some(_)) => dir.remove(&name),
            other => other.map(drop),
        };
        if let Err(errno) = removed {
            tracing::warn!(name, %errno, "a file that was not to stay could not be removed");
        }
    }
    for (_, volume) in core.volumes.up() {
        if let Err(error) = volume.dir.remove_spares() {
            tracing::warn!(%error, "spares that were not to stay could not be removed");
        }
    }
}
