'use strict';
// The list of streams, and the player of one. Nothing here comes from, or goes to, anywhere but this server.

const byId = (id) => document.getElementById(id);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));

async function streams() {
  const asked = Date.now();
  const answer = await fetch('/streams.json', { cache: 'no-store' });
  if (!answer.ok) throw new Error('the server answers ' + answer.status);
  const value = await answer.json();
  // The server's clock minus ours, by the middle of the question.
  value.skew = value['now-ms'] - (asked + Date.now()) / 2;
  return value;
}

function describe(stream) {
  if (!stream.live && !stream.open) return 'no application is connected';
  if (!stream.live) return stream.viewers ? 'waiting for frames' : 'nobody watches';
  return `${stream.width}×${stream.height}, ${stream.fps} frames/s, ${stream.viewers} watching`;
}

async function list() {
  for (;;) {
    try {
      const all = (await streams()).streams;
      byId('state').textContent = all.length ? '' : 'There are no streams yet.';
      byId('streams').replaceChildren(...all.map((stream) => {
        const item = document.createElement('li');
        const link = document.createElement('a');
        link.href = '/' + encodeURIComponent(stream.name);
        link.textContent = stream.name;
        const text = document.createElement('span');
        text.textContent = describe(stream);
        item.append(link, text);
        return item;
      }));
    } catch (error) {
      byId('state').textContent = 'Not connected: ' + error.message;
    }
    await wait(2000);
  }
}

// A live stream of MP4 boxes into a <video>.
class Player {
  constructor(path, video) {
    Object.assign(this, { path, video, queue: [], taken: [], codec: '', source: null, buffer: null });
    video.addEventListener('error', () => this.fail(new Error('the browser can\'t decode this')));
  }

  fail(error) {
    this.error = this.error || error;
    if (this.abort) this.abort.abort();
  }

  async run() {
    Object.assign(this, { error: null, queue: [], taken: [], codec: '', buffer: null, abort: new AbortController() });
    const answer = await fetch(this.path, { cache: 'no-store', signal: this.abort.signal });
    if (!answer.ok) throw new Error('the server answers ' + answer.status);
    const reader = answer.body.getReader();
    let held = new Uint8Array(0);
    let parts = [];
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.error) break;
        const all = new Uint8Array(held.length + value.length);
        all.set(held);
        all.set(value, held.length);
        let at = 0;
        while (all.length - at >= 8) {
          const view = new DataView(all.buffer, at);
          const size = view.getUint32(0);
          if (size < 8) throw new Error('the stream is damaged');
          if (all.length - at < size) break;
          const type = String.fromCharCode(...all.subarray(at + 4, at + 8));
          const box = all.slice(at, at + size);
          at += size;
          if (type === 'prft') this.note(new DataView(box.buffer));
          else parts.push(box);
          if (type === 'moov') await this.init(box);
          if (type === 'moov' || type === 'mdat') {
            this.queue.push(...parts);
            parts = [];
            this.append();
          }
        }
        held = all.slice(at);
      }
    } catch (error) {
      throw this.error || error;
    }
    if (this.error) throw this.error;
  }

  // When a frame was taken: NTP time, and its place in the stream.
  note(view) {
    const wall = (view.getUint32(16) - 2208988800) * 1000 + view.getUint32(20) * 1000 / 4294967296;
    const at = (view.getUint32(24) * 4294967296 + view.getUint32(28)) / 90000;
    this.taken.push({ at, wall });
    if (this.taken.length > 600) this.taken.splice(0, 300);
  }

  async init(moov) {
    let at = 0;
    while (String.fromCharCode(...moov.subarray(at, at + 4)) !== 'avcC') {
      if (++at > moov.length - 8) throw new Error('the stream has no H.264 track');
    }
    const hex = [...moov.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, '0'));
    const codec = `video/mp4; codecs="avc1.${hex.join('')}"`;
    if (!window.MediaSource || !MediaSource.isTypeSupported(codec)) throw new Error('this browser does not play ' + codec);
    if (this.buffer) {
      if (codec !== this.codec && this.buffer.changeType) {
        while (this.buffer.updating || this.queue.length) await wait(10);
        this.buffer.changeType(codec);
      }
      this.codec = codec;
      return;
    }
    this.codec = codec;
    const source = new MediaSource();
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
    await new Promise((open) => source.addEventListener('sourceopen', open, { once: true }));
    this.source = source;
    this.buffer = source.addSourceBuffer(codec);
    this.buffer.addEventListener('updateend', () => this.append());
  }

  append() {
    const { buffer, video } = this;
    if (!buffer || buffer.updating || this.error || this.source.readyState !== 'open') return;
    try {
      this.follow();
      const ranges = buffer.buffered;
      if (ranges.length && ranges.start(0) < video.currentTime - 20) {
        buffer.remove(0, video.currentTime - 10);
      } else if (this.queue.length) {
        buffer.appendBuffer(this.queue.shift());
      }
    } catch (error) {
      this.fail(error);
    }
  }

  // Stays near the newest frame, and jumps over gaps.
  follow() {
    const { video } = this;
    const ranges = this.buffer.buffered;
    if (!ranges.length) return;
    const last = ranges.length - 1;
    const [start, end] = [ranges.start(last), ranges.end(last)];
    if (video.currentTime < start || end - video.currentTime > 2) video.currentTime = Math.max(start, end - 0.1);
    video.playbackRate = end - video.currentTime > 0.4 ? 1.1 : 1;
    if (video.paused) video.play().catch(() => {});
  }

  // How old the picture is that is shown, in milliseconds by our clock.
  age(skew) {
    const now = this.video.currentTime;
    const shown = this.taken.filter((frame) => frame.at <= now).pop();
    return shown ? Date.now() + skew - shown.wall - (now - shown.at) * 1000 : null;
  }
}

async function play() {
  const name = decodeURIComponent(location.pathname.slice(1));
  const path = '/' + encodeURIComponent(name);
  document.title = name + ' – spyglassd';
  byId('name').textContent = name;
  byId('mjpg').href = path + '.mjpg';
  byId('jpg').href = path + '.jpg';
  const [video, picture] = [byId('video'), byId('picture')];
  const player = new Player(path + '.mp4', video);
  tell(name, player);
  for (let failures = 0; failures < 4;) {
    const began = Date.now();
    try {
      await player.run();
      byId('state').textContent = 'The stream has ended; trying again.';
    } catch (error) {
      byId('state').textContent = error.message + '; trying again.';
      failures += 1;
    }
    if (Date.now() - began > 10000) failures = 0;
    await wait(1000);
  }
  // Whatever can't play it as a video can show pictures.
  video.hidden = true;
  picture.hidden = false;
  picture.src = path + '.mjpg';
  byId('state').textContent = 'Shown as single pictures.';
}

async function tell(name, player) {
  for (;;) {
    try {
      const all = await streams();
      const stream = all.streams.find((stream) => stream.name === name);
      if (stream) {
        const age = player.age(all.skew);
        const lost = player.video.getVideoPlaybackQuality ? player.video.getVideoPlaybackQuality().droppedVideoFrames : 0;
        byId('fps').textContent = stream.fps;
        byId('delay').textContent = age === null ? '–' : (age / 1000).toFixed(2) + ' s';
        byId('drops').textContent = `${stream.skips} on the way, ${lost} here`;
        byId('viewers').textContent = stream.viewers;
        byId('size').textContent = stream.width ? `${stream.width}×${stream.height}` : '–';
        if (stream.live && player.buffer && !player.error) byId('state').textContent = 'Live.';
        if (!stream.live) byId('state').textContent = stream.open ? 'Waiting for frames.' : 'No application is connected.';
      }
    } catch (error) {
      byId('state').textContent = 'Not connected: ' + error.message;
    }
    await wait(1000);
  }
}

if (document.body.dataset.page === 'list') list(); else play();
