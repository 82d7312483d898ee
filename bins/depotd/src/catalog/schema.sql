-- Form 1. An app is known by its name in lower case; states: 0 pending, 1 live, 2 paused, 3 retired.
CREATE TABLE release (
    app_key    TEXT    NOT NULL,
    env        TEXT    NOT NULL,
    epoch      INTEGER NOT NULL,
    app        TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    state      INTEGER NOT NULL,
    rollout    INTEGER NOT NULL,
    floor      INTEGER NOT NULL,
    from_epoch INTEGER NOT NULL,
    md5        TEXT,
    sha256     TEXT,
    size       INTEGER,
    url        TEXT    NOT NULL,
    attrs      TEXT    NOT NULL,
    statement  TEXT,
    signature  TEXT,
    published  INTEGER NOT NULL,
    PRIMARY KEY (app_key, env, epoch)
);
CREATE INDEX release_live ON release (app_key, env, epoch) WHERE state = 1;
CREATE INDEX release_everybody ON release (app_key, env, epoch) WHERE state = 1 AND rollout >= 100;
CREATE INDEX release_floor ON release (app_key, env, epoch) WHERE state = 1 AND floor = 1;
CREATE INDEX release_content ON release (sha256);
-- Which apps an attribute selects: kept by every change, from the live releases.
CREATE TABLE selects (
    attr    TEXT NOT NULL,
    env     TEXT NOT NULL,
    app_key TEXT NOT NULL,
    app     TEXT NOT NULL,
    PRIMARY KEY (attr, env, app_key)
) WITHOUT ROWID;
CREATE INDEX selects_app ON selects (app_key, env);
