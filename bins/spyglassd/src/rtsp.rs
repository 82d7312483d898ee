//! RTSP: `rtsp://host:port/<name>`, through gst-rtsp-server on a GLib thread of its own.
//!
//! All viewers of a stream share one medium, which takes the encoder's units as they are. A stream's address exists
//! from its producer's first frame until it goes; a viewer who is connected then waits, and sees it come back.
//! Owns: the server, its thread, and one appsrc a medium. Invariants: a medium begins with a key frame and, after a
//! gap, goes on with one; its units are never in the future of its clock, so that nothing waits for it; a medium that
//! does not take its units loses them, and only it; connections are bounded, each has a thread of its own, so that one
//! whose medium is waited for keeps nobody else waiting, and nothing wakes up while there is none.
//! Never: encodes, blocks the caller.

mod clients;
mod feed;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edge::log::Throttle;

use gst::glib;
use gst::prelude::*;
use gst_app::AppSrc;
use gst_rtsp_server::gst_rtsp::{RTSPAuthMethod, RTSPLowerTrans, RTSPStatusCode};
use gst_rtsp_server::prelude::*;
use gst_rtsp_server::{
    RTSP_PERM_MEDIA_FACTORY_ACCESS, RTSP_PERM_MEDIA_FACTORY_CONSTRUCT, RTSP_TOKEN_MEDIA_FACTORY_ROLE,
    RTSPAuth, RTSPClient, RTSPMedia, RTSPMediaFactory, RTSPMountPoints, RTSPServer, RTSPSession,
    RTSPSessionPool, RTSPThreadPool, RTSPToken,
};

use crate::config::access::Users;
use crate::unit::Unit;
use clients::Clients;
use feed::Feed;

/// Who has a password, has this role.
const ROLE: &str = "viewer";
/// How often dead sessions and connections that do not play are looked for while there are any, in seconds.
const CLEAN_S: u32 = 5;
/// Connections that wait for the server to take them up.
const BACKLOG: i32 = 128;

/// What the server is told.
#[derive(Debug, Clone)]
pub struct RtspConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// UDP besides TCP.
    pub udp: bool,
    /// Viewers at once.
    pub sessions_max: u32,
    /// Connections at once, those that do not play included.
    pub connections_max: usize,
    /// Bytes that may wait for a medium.
    pub queue_bytes: u64,
    /// Who may watch; `None` = everybody.
    pub users: Option<Arc<Users>>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum RtspError {
    /// Another program has the port, or it is not allowed.
    #[error("RTSP can't listen on {0}: {1} (is the port taken? set another rtsp.listen, \"\" for none)")]
    Listen(SocketAddr, String),
    /// The system has no thread.
    #[error("RTSP has no thread")]
    Thread(#[source] std::io::Error),
}

/// The server.
#[derive(Debug)]
pub struct Server {
    server: RTSPServer,
    mounts: RTSPMountPoints,
    factories: HashMap<String, RTSPMediaFactory>,
    config: RtspConfig,
    shared: Arc<Shared>,
    main_loop: glib::MainLoop,
    thread: Option<std::thread::JoinHandle<()>>,
    source: Option<glib::SourceId>,
    context: glib::MainContext,
}

struct Shared {
    state: Mutex<State>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

struct State {
    feeds: Vec<Feed>,
    clients: Clients<Handle>,
    /// The timer that looks for those that have to go runs.
    looks: bool,
    turned_away: Throttle,
    joined: Vec<String>,
    /// Units that media did not take, by stream.
    dropped: HashMap<String, u64>,
    next: u64,
}

/// What a connection is closed by.
type Handle = glib::WeakRef<RTSPClient>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, name: &str) {
        let mut state = self.lock();
        if !state.joined.iter().any(|n| n == name) {
            state.joined.push(name.to_owned());
        }
        drop(state);
        (self.wake)();
    }
}

impl Server {
    /// Listens. `wake` is called, on any thread, when [`Server::wants`] or [`Server::take_joined`] may have changed.
    ///
    /// # Errors
    /// [`RtspError`].
    pub fn start(config: RtspConfig, wake: impl Fn() + Send + Sync + 'static) -> Result<Server, RtspError> {
        let state = State {
            feeds: Vec::new(),
            clients: Clients::new(config.connections_max),
            looks: false,
            turned_away: Throttle::new(Duration::from_secs(60)),
            joined: Vec::new(),
            dropped: HashMap::new(),
            next: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Box::new(wake) });
        let server = RTSPServer::new();
        server.set_address(&config.listen.ip().to_string());
        server.set_service(&config.listen.port().to_string());
        // Of those that come at once; whom the kernel has no room for tries again a second later, and later still.
        server.set_backlog(BACKLOG);
        let mounts = RTSPMountPoints::new();
        server.set_mount_points(Some(&mounts));
        let threads = RTSPThreadPool::new();
        threads.set_max_threads(i32::try_from(config.connections_max).unwrap_or(i32::MAX));
        server.set_thread_pool(Some(&threads));
        let pool = RTSPSessionPool::new();
        pool.set_max_sessions(config.sessions_max);
        server.set_session_pool(Some(&pool));
        if let Some(users) = &config.users {
            server.set_auth(Some(&auth(users)));
        }
        let context = glib::MainContext::new();
        watch_clients(&server, &shared, &pool, &context);
        let attached =
            server.attach(Some(&context)).map_err(|e| RtspError::Listen(config.listen, e.to_string()))?;
        let main_loop = glib::MainLoop::new(Some(&context), false);
        let (looped, its) = (main_loop.clone(), context.clone());
        let thread = std::thread::Builder::new()
            .name("rtsp".to_owned())
            .spawn(move || {
                if its.with_thread_default(|| looped.run()).is_err() {
                    log::error!("the RTSP thread does not get its context; RTSP does not answer");
                }
            })
            .map_err(RtspError::Thread)?;
        Ok(Server {
            server,
            mounts,
            factories: HashMap::new(),
            config,
            shared,
            main_loop,
            thread: Some(thread),
            source: Some(attached),
            context,
        })
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        u16::try_from(self.server.bound_port()).unwrap_or(self.config.listen.port())
    }

    /// A stream can be watched from now on.
    pub fn mount(&mut self, name: &str) {
        let factory = match self.factories.get(name) {
            Some(factory) => factory.clone(),
            None => {
                let factory = self.factory(name);
                self.factories.insert(name.to_owned(), factory.clone());
                factory
            }
        };
        self.mounts.add_factory(&format!("/{name}"), factory);
    }

    /// New viewers find no such stream; those who are there stay.
    pub fn unmount(&mut self, name: &str) {
        self.mounts.remove_factory(&format!("/{name}"));
    }

    /// These streams there are; viewers of others are sent away, and nothing is kept for them.
    pub fn retain(&mut self, names: &[String]) {
        let gone: Vec<String> = self.factories.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in &gone {
            self.unmount(name);
            self.factories.remove(name);
        }
        let mut state = self.shared.lock();
        state.joined.retain(|name| names.contains(name));
        state.dropped.retain(|name, _| names.contains(name));
        let viewers = gone.iter().flat_map(|name| state.clients.of(name)).collect();
        drop(state);
        close_soon(viewers, &self.context);
    }

    /// Whether somebody watches, or is about to.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.shared.lock().feeds.iter().any(|feed| feed.name == name)
    }

    /// Whether somebody joined since this was asked last.
    #[must_use]
    pub fn take_joined(&self, name: &str) -> bool {
        let mut state = self.shared.lock();
        let before = state.joined.len();
        state.joined.retain(|n| n != name);
        before != state.joined.len()
    }

    /// Viewers that play this stream.
    #[must_use]
    pub fn viewers(&self, name: &str) -> usize {
        self.shared.lock().clients.of(name).len()
    }

    /// Units of this stream that media did not take.
    #[must_use]
    pub fn dropped(&self, name: &str) -> u64 {
        self.shared.lock().dropped.get(name).copied().unwrap_or(0)
    }

    /// A unit for whoever watches.
    pub fn push(&self, name: &str, unit: &Unit) {
        let mut state = self.shared.lock();
        let mut dropped = 0;
        for feed in state.feeds.iter_mut().filter(|feed| feed.name == name) {
            dropped += u64::from(!feed.push(unit, self.config.queue_bytes));
        }
        if dropped > 0 {
            *state.dropped.entry(name.to_owned()).or_default() += dropped;
        }
    }

    fn factory(&self, name: &str) -> RTSPMediaFactory {
        let factory = RTSPMediaFactory::new();
        // The units bring their parameter sets. The payloader's own config-interval must stay 0: it puts them before each
        // IDR slice, and in the midst of a picture of several slices they end the picture.
        factory.set_launch(
            "( appsrc name=units is-live=true format=time block=false \
             caps=video/x-h264,stream-format=byte-stream,alignment=au ! \
             rtph264pay name=pay0 pt=96 config-interval=0 )",
        );
        factory.set_shared(true);
        let udp = if self.config.udp { RTSPLowerTrans::UDP } else { RTSPLowerTrans::empty() };
        factory.set_protocols(RTSPLowerTrans::TCP | udp);
        if self.config.users.is_some() {
            let role = gst::Structure::builder(ROLE)
                .field(RTSP_PERM_MEDIA_FACTORY_ACCESS.as_str(), true)
                .field(RTSP_PERM_MEDIA_FACTORY_CONSTRUCT.as_str(), true)
                .build();
            factory.add_role_from_structure(&role);
        }
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        factory.connect_media_configure(move |_, media| configure(&shared, &name, media));
        factory
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closes the connections, then the listening socket, then the thread.
        self.server.client_filter(Some(&mut |_: &RTSPServer, _: &gst_rtsp_server::RTSPClient| {
            gst_rtsp_server::RTSPFilterResult::Remove
        }));
        if let Some(source) = self.source.take().and_then(|id| self.context.find_source_by_id(&id)) {
            source.destroy();
        }
        // From within the loop: a quit that comes before its run is lost, and the thread would never end.
        let ending = self.main_loop.clone();
        let quit = glib::idle_source_new(None, glib::Priority::DEFAULT, move || {
            ending.quit();
            glib::ControlFlow::Break
        });
        quit.attach(Some(&self.context));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the RTSP thread has panicked");
        }
    }
}

fn auth(users: &Users) -> RTSPAuth {
    let auth = RTSPAuth::new();
    auth.set_supported_methods(RTSPAuthMethod::Digest);
    for (user, secret) in users.iter() {
        let token = RTSPToken::builder().field(RTSP_TOKEN_MEDIA_FACTORY_ROLE.as_str(), ROLE).build();
        auth.add_digest(user, secret.expose(), &token);
    }
    auth
}

/// Counts who is there and who plays what, and asks for a key frame when somebody begins.
fn watch_clients(
    server: &RTSPServer,
    shared: &Arc<Shared>,
    pool: &RTSPSessionPool,
    context: &glib::MainContext,
) {
    let (shared, pool, context) = (Arc::clone(shared), pool.clone(), context.clone());
    server.connect_client_connected(move |_, client| {
        let now = Instant::now();
        let mut state = shared.lock();
        let (id, victim) = state.clients.join(client.downgrade(), now);
        let told = victim.as_ref().and_then(|_| state.turned_away.event(now));
        let looks = std::mem::replace(&mut state.looks, true);
        drop(state);
        if let Some(held) = told {
            let more = if held == 0 { String::new() } else { format!(" ({held} more since the last line)") };
            log::warn!(
                "RTSP: a connection that plays nothing is closed: there are rtsp.connections-max{more}"
            );
        }
        close_soon(victim.into_iter().collect(), &context);
        if !looks {
            look_for_the_dead(&shared, &pool, &context);
        }
        let (asks, plays, stops, gone) =
            (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        client.connect_pre_describe_request(move |_, _| {
            asks.lock().clients.asks(id);
            RTSPStatusCode::Ok
        });
        client.connect_play_request(move |_, context| {
            // The empty part before the first slash, the name, and perhaps a control path of the one stream.
            let parts = context.uri().map(|uri| uri.decode_path_components()).unwrap_or_default();
            let name = parts.get(1).map(ToString::to_string).unwrap_or_default();
            plays.lock().clients.plays(id, &name);
            plays.join(&name);
        });
        client.connect_teardown_request(move |_, _| {
            stops.lock().clients.stops(id, Instant::now());
        });
        let sessions: Arc<Mutex<Vec<glib::WeakRef<RTSPSession>>>> = Arc::default();
        let begun = Arc::clone(&sessions);
        client.connect_new_session(move |_, session| {
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(session.downgrade());
        });
        let pool = pool.clone();
        client.connect_closed(move |_| {
            gone.lock().clients.gone(id);
            // A session without its connection plays no longer, but would keep a viewer's place for a minute.
            let ended = std::mem::take(&mut *sessions.lock().unwrap_or_else(PoisonError::into_inner));
            for session in ended.iter().filter_map(glib::WeakRef::upgrade) {
                // It may have gone by itself.
                let _ = pool.remove(&session);
            }
            (gone.wake)();
        });
    });
}

/// Closes connections from the server's thread, after what it is doing: one that has just come is not in use before that.
fn close_soon(clients: Vec<Handle>, context: &glib::MainContext) {
    if clients.is_empty() {
        return;
    }
    let close = glib::idle_source_new(None, glib::Priority::DEFAULT, move || {
        clients.iter().filter_map(glib::WeakRef::upgrade).for_each(|client| client.close());
        glib::ControlFlow::Break
    });
    close.attach(Some(context));
}

/// Looks for dead sessions and for connections that do not play, until there is neither.
fn look_for_the_dead(shared: &Arc<Shared>, pool: &RTSPSessionPool, context: &glib::MainContext) {
    let (shared, pool) = (Arc::clone(shared), pool.clone());
    let timer = glib::timeout_source_new_seconds(CLEAN_S, None, glib::Priority::DEFAULT, move || {
        pool.cleanup();
        let late = shared.lock().clients.late(Instant::now());
        // Without the lock: each says that it is gone.
        late.iter().filter_map(glib::WeakRef::upgrade).for_each(|client| client.close());
        let sessions = pool.n_sessions();
        let mut state = shared.lock();
        state.looks = sessions > 0 || !state.clients.is_empty();
        if state.looks { glib::ControlFlow::Continue } else { glib::ControlFlow::Break }
    });
    timer.attach(Some(context));
}

/// A medium is made: its way in is remembered until it ends.
fn configure(shared: &Arc<Shared>, name: &str, media: &RTSPMedia) {
    let bin = media.element().downcast::<gst::Bin>().ok();
    let Some(frames) = bin.and_then(|b| b.by_name("units")).and_then(|e| e.downcast::<AppSrc>().ok()) else {
        log::error!("RTSP: the medium of {name} has no appsrc");
        return;
    };
    let mut state = shared.lock();
    state.next += 1;
    let id = state.next;
    state.feeds.push(Feed::new(id, name, frames));
    drop(state);
    let over = Arc::clone(shared);
    media.connect_unprepared(move |_| {
        let mut state = over.lock();
        // Dropped after the lock: the last reference to the medium may be among them.
        let (gone, stay) =
            std::mem::take(&mut state.feeds).into_iter().partition::<Vec<_>, _>(|f| f.id == id);
        state.feeds = stay;
        drop(state);
        drop(gone);
        (over.wake)();
    });
    shared.join(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_at_once_ends() {
        crate::pipeline::init().unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..200 {
                let config = RtspConfig {
                    listen: "127.0.0.1:0".parse().unwrap(),
                    udp: false,
                    sessions_max: 4,
                    connections_max: 4,
                    queue_bytes: 1 << 20,
                    users: None,
                };
                drop(Server::start(config, || {}).unwrap());
            }
            done.send(()).unwrap();
        });
        ended.recv_timeout(std::time::Duration::from_secs(60)).expect("a server's thread never ended");
    }
}
