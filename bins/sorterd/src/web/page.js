'use strict';
// The list of sessions, and one session. Names and classes come from outside: they become text, never markup.
// Nothing here comes from, or goes to, anywhere but this server.

const PERIOD_MS = 2000;
const COLOURS = 10;
const SVG = 'http://www.w3.org/2000/svg';

const byId = (id) => document.getElementById(id);
const path = (...parts) => parts.map((part) => '/' + encodeURIComponent(part)).join('');
const colour = (group) => (Number.isInteger(group) && group >= 0 ? 'g' + (group % COLOURS) : 'g');
const named = (group) => (Number.isInteger(group) ? String(group + 1) : '–');
const place = (servo) => (servo ? servo.map((value) => value.toFixed(1)).join(' / ') : '–');
const counted = (n, what) => `${n} ${what}${n === 1 ? '' : 's'}`;

function element(name, properties, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Heads that begin with '#' are of numbers.
function table(heads, rows, wide) {
  const numeric = heads.map((head) => head.startsWith('#'));
  const cells = (kind, values) => values.map((value, n) => element(kind, { className: numeric[n] ? 'n' : '' }, value));
  const head = cells('th', heads.map((text) => text.replace('#', '')));
  const body = rows.map((row) => element('tr', {}, ...cells('td', row)));
  const made = element('table', { className: wide ? 'wide' : '' },
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body));
  return element('div', { className: wide ? 'card scroll wide' : 'card scroll' }, made);
}

function figures(pairs) {
  return element('dl', { className: 'figures' }, ...pairs.map(([what, value]) =>
    element('div', {}, element('dt', {}, what), element('dd', {}, String(value)))));
}

function marked(group, text) {
  return element('span', { className: colour(group) }, element('span', { className: 'dot' }), text);
}

function when(ms) {
  const time = new Date(ms);
  const pad = (value) => String(value).padStart(2, '0');
  return `${time.getFullYear()}-${pad(time.getMonth() + 1)}-${pad(time.getDate())} ` +
    `${pad(time.getHours())}:${pad(time.getMinutes())}:${pad(time.getSeconds())}`;
}

function list({ sessions }) {
  if (!sessions.length) return [element('p', { className: 'soft' }, 'No arm has sent a picture yet.')];
  const rows = [...sessions].sort((a, b) => b.updated_ms - a.updated_ms).map((session) => [
    element('a', { href: '/sessions' + path(session.arm, session.session) }, session.session),
    session.arm, String(session.images), String(session.objects), when(session.updated_ms),
  ]);
  return [element('h2', {}, 'Sessions'), table(['session', 'arm', '#pictures', '#objects', 'last change'], rows, true)];
}

function box(object, size) {
  const [x1, y1, x2, y2] = object.box;
  const item = object.class === 0;
  const at = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  const what = `${item ? 'item' : 'container'} ${named(object.group)}`;
  const detail = `${what}: class ${object.class}, score ${object.score.toFixed(2)}, servos ${place(object.servo)}`;
  // Above the box, or inside where there is no room above.
  const up = y1 - size * 0.35;
  const text = shape('text', { x: x1, y: up > size ? up : y1 + size * 1.1, 'font-size': size, 'stroke-width': size / 5 }, what);
  return shape('g', { class: `box ${item ? 'item' : 'container'} ${colour(object.group)}` },
    shape('title', {}, detail), shape('rect', { class: 'under', ...at }), shape('rect', { class: 'over', ...at }), text);
}

function picture(session, image) {
  const name = image.after && !image.image.startsWith('after_') ? 'after_' + image.image : image.image;
  const shown = element('img', { src: '/pictures' + path(session.arm, session.session, name), alt: name, loading: 'lazy' });
  // Known before it is loaded, its size keeps the page from jumping.
  if (image.width && image.height) Object.assign(shown, { width: image.width, height: image.height });
  const stage = element('div', { className: 'stage' }, shown);
  if (image.objects.length && image.width && image.height) {
    const size = Math.max(image.width, image.height) / 36;
    // Items above containers, which are larger.
    const objects = [...image.objects].sort((a, b) => (a.class === 0) - (b.class === 0));
    stage.append(shape('svg', { viewBox: `0 0 ${image.width} ${image.height}`, role: 'img', 'aria-label': `boxes on ${name}` },
      ...objects.map((object) => box(object, size))));
  }
  const items = image.objects.filter((object) => object.class === 0).length;
  const found = image.after ? '' : `${counted(items, 'item')}, ${counted(image.objects.length - items, 'container')}`;
  return element('figure', { className: 'card' }, stage,
    element('figcaption', {}, element('span', {}, name), element('span', { className: 'soft' }, found)));
}

function commands(session) {
  if (!session.commands) return [element('p', { className: 'soft' }, 'Nobody has asked for the commands yet.')];
  if (!session.commands.length) return [element('p', { className: 'soft' }, 'None: there is no item, or no container.')];
  // A command carries its container's place; that says which group it is.
  const groups = new Map(session.containers.map((container) => [place(container.servo), container.group]));
  const rows = session.commands.map(([from, to], n) => {
    const group = groups.get(place(to));
    return [String(n + 1), marked(group, named(group)), ...from.map((v) => v.toFixed(1)), ...to.map((v) => v.toFixed(1))];
  });
  return [table(['#', 'group', '#item servo 0', '#servo 1', '#container servo 0', '#servo 1'], rows)];
}

function panorama(session, name) {
  const address = '/pictures' + path(session.arm, session.session, name);
  const what = name.startsWith('after') ? 'afterwards' : 'before';
  return element('figure', { className: 'card panorama' }, element('a', { href: address },
    element('img', { src: address, alt: name, loading: 'lazy' })),
  element('figcaption', {}, element('span', {}, name), element('span', { className: 'soft' }, what)));
}

function one(session) {
  const before = session.images.filter((image) => !image.after);
  const after = session.images.filter((image) => image.after);
  const objects = before.flatMap((image) => image.objects);
  const parts = [figures([
    ['pictures', before.length], ['boxes on them', objects.length],
    ['containers', session.commands ? session.containers.length : '–'],
    ['commands', session.commands ? session.commands.length : '–'],
  ])];
  const section = (title, ...children) => {
    if (children.length) parts.push(element('h2', {}, title), ...children);
  };
  const grid = (images) => element('div', { className: 'pictures' }, ...images.map((image) => picture(session, image)));
  section('Commands', ...commands(session));
  if (before.length) section('Pictures', grid(before));
  section('Panoramas', ...session.panoramas.map((name) => panorama(session, name)));
  if (after.length) section('Pictures afterwards', grid(after));
  return parts;
}

// `/sessions`, or `/sessions/<arm>/<session>`.
function asked() {
  const parts = location.pathname.split('/').slice(2).filter(Boolean).map(decodeURIComponent);
  return parts.length < 2 ? null : parts.slice(0, 2);
}

function say(text, bad) {
  byId('state').textContent = text;
  byId('state').className = bad ? 'bad' : '';
}

let shown = '';
async function refresh(names) {
  const answer = await fetch('/api/sessions' + (names ? path(...names) : ''), { cache: 'no-store' });
  if (answer.status === 404) return say('There is no such session (yet).', true);
  if (!answer.ok) throw new Error('the server answers ' + answer.status);
  const text = await answer.text();
  say('live', false);
  // What has not changed is left alone: pictures do not flicker and selected text stays selected.
  if (text === shown) return undefined;
  byId('main').replaceChildren(...(names ? one : list)(JSON.parse(text)));
  shown = text;
  return undefined;
}

async function run() {
  const names = asked();
  if (names) {
    byId('where').textContent = names.join(' / ');
    document.title = names.join(' / ') + ' – sorterd';
  }
  for (;;) {
    try {
      if (document.visibilityState === 'visible') await refresh(names);
    } catch (error) {
      say('Not connected: ' + error.message, true);
    }
    await new Promise((done) => setTimeout(done, PERIOD_MS));
  }
}

// A tab that comes to the front does not wait for the next turn.
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') refresh(asked()).catch((error) => say('Not connected: ' + error.message, true));
});
run().catch((error) => say(error.message, true));
