//! Programs that use GStreamer start again once, so that its registry of plug-ins is kept.

use std::os::unix::process::CommandExt as _;
use std::path::Path;

/// Sees to it that GStreamer keeps its registry in `folder`, which is made; whoever set GST_REGISTRY is not overruled.
/// GStreamer reads that place from the environment, which only a new program image can be given safely: the program
/// starts itself again, once. Without it a start costs seconds, for all plug-ins are looked at anew. Call it before
/// anything is opened. What goes wrong is a warning.
pub fn keep_gst_registry(folder: &Path) {
    if std::env::var_os("GST_REGISTRY").is_some() {
        return;
    }
    if let Err(error) = std::fs::create_dir_all(folder) {
        log::warn!("cannot make cache-dir {}: {error}; GStreamer starts slowly without it", folder.display());
        return;
    }
    let registry = folder.join("gstreamer-registry.bin");
    let Ok(own) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new(own);
    command.args(std::env::args_os().skip(1)).env("GST_REGISTRY", &registry);
    // It only returns when it failed.
    let error = command.exec();
    log::warn!("cannot start again with GST_REGISTRY={}: {error}", registry.display());
}
