CREATE TABLE credits (
    rollout_id TEXT PRIMARY KEY REFERENCES rollouts (id) ON DELETE CASCADE,
    reward REAL,
    reward_steps TEXT,                  -- JSON
    rule TEXT,                          -- NULL: a reward without credit
    advantages BLOB,                    -- float32
    baseline REAL,
    cost TEXT,                          -- JSON
    details TEXT,                       -- JSON
    special TEXT,
    CHECK ((rule IS NULL) = (advantages IS NULL))
) STRICT;

CREATE TABLE edits (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL UNIQUE,   -- order of proposal
    rollout_id TEXT NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('keep', 'prune', 'summarise', 'fix')),
    first INTEGER NOT NULL,             -- tokens first to last (exclusive) become the text
    last INTEGER NOT NULL,
    text ANY NOT NULL,
    source ANY NOT NULL,
    verification TEXT,                  -- JSON; NULL: not verified yet
    decision TEXT CHECK (decision IN ('accepted', 'rejected'))      -- of a person; NULL: none
) STRICT;

CREATE TABLE evaluations (
    stage TEXT NOT NULL REFERENCES stages (name),
    update_number INTEGER NOT NULL,
    name TEXT NOT NULL,                 -- which set of problems
    problem_key TEXT NOT NULL,
    idx INTEGER NOT NULL,               -- which sample of the problem
    correct INTEGER CHECK (correct IN (0, 1)),
    outcome TEXT NOT NULL,
    score REAL,
    length INTEGER NOT NULL,            -- tokens that the policy wrote
    rollout_id TEXT,                    -- kept or not
    parts TEXT NOT NULL,                -- JSON
    special TEXT,
    PRIMARY KEY (stage, update_number, name, problem_key, idx)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,                 -- unix seconds
    stage TEXT,
    kind TEXT NOT NULL,
    message ANY NOT NULL
) STRICT;

CREATE TABLE findings (
    id INTEGER PRIMARY KEY,
    stage TEXT REFERENCES stages (name),            -- NULL: of the whole run
    update_number INTEGER,
    audit TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    claim ANY NOT NULL,
    value REAL,
    low REAL,
    high REAL,
    threshold REAL,
    evidence TEXT NOT NULL,             -- JSON: ids of rollouts
    special TEXT
) STRICT;

CREATE TABLE lessons (
    id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    text ANY NOT NULL,
    about ANY NOT NULL,
    origin TEXT NOT NULL,               -- JSON: ids of rollouts
    helpful INTEGER NOT NULL,
    harmful INTEGER NOT NULL,
    audits TEXT NOT NULL,               -- JSON: what each audit found
    deleted INTEGER NOT NULL CHECK (deleted IN (0, 1))
) STRICT;

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE metrics (
    stage TEXT NOT NULL REFERENCES stages (name),
    update_number INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,                         -- NULL where not finite
    special TEXT CHECK (special IN ('nan', 'inf', '-inf')),
    PRIMARY KEY (stage, update_number, name),
    CHECK ((value IS NULL) = (special IS NOT NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;

CREATE TABLE pool_texts (
    stage TEXT NOT NULL REFERENCES pools (stage),
    position INTEGER NOT NULL,
    beside INTEGER NOT NULL CHECK (beside IN (0, 1)),
    tokens BLOB NOT NULL,               -- int32, the prompt's included
    loss_mask BLOB NOT NULL,            -- one byte per position
    provenance ANY NOT NULL,
    PRIMARY KEY (stage, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE pools (
    stage TEXT PRIMARY KEY REFERENCES stages (name),    -- that learns from the texts
    identity TEXT NOT NULL,             -- hash of what decides the texts beside the weights
    tokens INTEGER NOT NULL,            -- sampled to make them
    lessons TEXT NOT NULL               -- JSON: ids of the lessons that lived
) STRICT, WITHOUT ROWID;

CREATE TABLE problems (
    key TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    prompt TEXT NOT NULL,               -- JSON: a string, or a list of messages
    answer ANY NOT NULL,
    difficulty REAL NOT NULL,
    metadata TEXT NOT NULL              -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE reviews (
    rollout_id TEXT PRIMARY KEY REFERENCES rollouts (id) ON DELETE CASCADE,
    document TEXT NOT NULL              -- JSON: the postmortem
) STRICT, WITHOUT ROWID;

CREATE TABLE rollouts (
    id TEXT PRIMARY KEY,
    group_id TEXT NOT NULL,
    stage TEXT NOT NULL REFERENCES stages (name),
    purpose TEXT NOT NULL,              -- train, evaluate, ...
    update_number INTEGER NOT NULL,
    position INTEGER NOT NULL,          -- order within stage, purpose and update
    idx INTEGER NOT NULL,               -- place in the group
    problem_key TEXT NOT NULL REFERENCES problems (key),
    parent_id TEXT,
    prefix_length INTEGER NOT NULL,
    prompt_tokens BLOB NOT NULL,        -- int32
    tokens BLOB NOT NULL,               -- int32
    behavior_logprobs BLOB NOT NULL,    -- float32, nats
    loss_mask BLOB NOT NULL,            -- one byte per position
    spans TEXT NOT NULL,                -- JSON: [start, end, kind, policy version]
    temperature REAL NOT NULL,
    text ANY NOT NULL,
    stop_reason TEXT NOT NULL,
    seed TEXT NOT NULL,
    UNIQUE (stage, purpose, update_number, position)
) STRICT;

CREATE TABLE stages (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL UNIQUE,   -- order in the recipe
    kind TEXT NOT NULL,
    parent TEXT,                        -- the stage whose weights it starts from
    status TEXT NOT NULL CHECK (status IN ('waiting', 'running', 'done', 'stopped', 'failed')),
    updates_done INTEGER NOT NULL,
    updates_total INTEGER NOT NULL,
    started REAL,                       -- unix seconds
    seconds REAL NOT NULL,              -- spent in its updates
    message ANY NOT NULL
) STRICT;

CREATE TABLE updates (
    stage TEXT NOT NULL REFERENCES stages (name),
    update_number INTEGER NOT NULL,
    seconds REAL NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (stage, update_number)
) STRICT, WITHOUT ROWID;

CREATE TABLE verdicts (
    rollout_id TEXT PRIMARY KEY REFERENCES rollouts (id) ON DELETE CASCADE,
    outcome TEXT NOT NULL,
    correct INTEGER CHECK (correct IN (0, 1)),      -- NULL: it could not be told
    score REAL,
    answer ANY,
    reason ANY NOT NULL,
    parts TEXT NOT NULL,                -- JSON
    special TEXT                        -- JSON: the numbers of this row that are not finite
) STRICT;

CREATE INDEX edits_by_rollout ON edits (rollout_id);

CREATE INDEX metrics_by_name ON metrics (stage, name, update_number);

CREATE INDEX rollouts_by_problem ON rollouts (problem_key);

