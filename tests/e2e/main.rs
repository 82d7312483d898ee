//! End-to-end tests: the real binaries against real brokers, S3 servers and files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../bins/spyglassd/tests/support/chromium.rs"]
mod chromium;
mod config;
mod depotd_aws;
mod depotd_crash;
mod depotd_forms;
mod depotd_publish;
mod depotd_serve;
mod depotd_tls;
mod disk;
mod garbage;
mod install;
mod launcher;
mod ota_apps;
mod ota_demo;
mod ota_hostile;
mod ota_network;
mod ota_operate;
mod ota_trial;
mod ota_units;
mod ota_update;
mod pipeline;
mod relay;
mod rig;
mod rules;
mod sideload_app;
mod sideload_contract;
mod sideload_dev;
mod sideload_sync;
mod sideload_together;
mod sorter_demo;
mod sorter_fleet;
mod sorter_hostile;
mod sorter_page;
mod sorter_panel;
mod sorter_sessions;
mod sorter_store;
mod spyglass_encoders;
mod spyglass_frames;
mod spyglass_limits;
mod spyglass_outputs;
mod spyglass_pictures;
mod spyglass_rtsp;
mod spyglass_soak;
mod store;
