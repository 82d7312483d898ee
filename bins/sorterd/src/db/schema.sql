-- Form 1, for SQLite and PostgreSQL alike; {id} is the one thing they spell differently. The names have a prefix because
-- a PostgreSQL database may hold other applications' tables as well.
CREATE TABLE sorter_session (
    arm        TEXT   NOT NULL,
    session    TEXT   NOT NULL,
    updated_ms BIGINT NOT NULL,
    answer     TEXT,
    PRIMARY KEY (arm, session)
);
CREATE INDEX sorter_session_updated ON sorter_session (updated_ms);
CREATE TABLE sorter_picture (
    arm       TEXT   NOT NULL,
    session   TEXT   NOT NULL,
    image     TEXT   NOT NULL,
    width     BIGINT NOT NULL,
    height    BIGINT NOT NULL,
    stored_ms BIGINT NOT NULL,
    PRIMARY KEY (arm, session, image)
);
CREATE TABLE sorter_object (
    id      {id},
    arm     TEXT   NOT NULL,
    session TEXT   NOT NULL,
    image   TEXT   NOT NULL,
    class   BIGINT NOT NULL,
    score   REAL   NOT NULL,
    x1      BIGINT NOT NULL,
    y1      BIGINT NOT NULL,
    x2      BIGINT NOT NULL,
    y2      BIGINT NOT NULL
);
CREATE INDEX sorter_object_picture ON sorter_object (arm, session, image, id);
