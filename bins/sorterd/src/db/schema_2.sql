-- Form 2: what a picture is made of (hexadecimal; NULL where form 1 stored it), so that it can be told from another one of
-- its name; and the pictures taken after the sorting, which another machine of the fleet may have been sent.
ALTER TABLE sorter_picture ADD COLUMN sha256 TEXT;
CREATE TABLE sorter_after (
    arm       TEXT   NOT NULL,
    session   TEXT   NOT NULL,
    image     TEXT   NOT NULL,
    width     BIGINT NOT NULL,
    height    BIGINT NOT NULL,
    sha256    TEXT   NOT NULL,
    stored_ms BIGINT NOT NULL,
    PRIMARY KEY (arm, session, image)
);
