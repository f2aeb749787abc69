//! The home's database: an index of boxes, their names, and the images that they were created from. A box's
//! configuration and status are in its folder, from which the database can be rebuilt.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::{Error, Result};

/// Timeout for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Statements that turn schema `n` into schema `n + 1`. Schema 0 is an empty database.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE boxes (
        id           TEXT PRIMARY KEY,
        name         TEXT NOT NULL UNIQUE,
        image        TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        created_ms   INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX boxes_by_image ON boxes (image_digest);
"];

/// The database. Several threads may share it, and several processes may have it open.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// A row of the database: a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) name: String,
    /// The image, as the options name it.
    pub(super) image: String,
    pub(super) image_digest: String,
    pub(super) created_ms: u64,
}

impl Entry {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            image: row.get(2)?,
            image_digest: row.get(3)?,
            created_ms: row.get::<_, i64>(4)?.try_into().unwrap_or(0),
        })
    }
}

const COLUMNS: &str = "id, name, image, image_digest, created_ms";

impl Store {
    /// Opens the database and migrates it to the newest schema.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = Error::store(path, "opened");
        let mut connection = Connection::open(path).map_err(&failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
        // After the check for a newer release, whose database must not change.
        check_version(path, version(&connection).map_err(&failed)?)?;
        retry_while_busy(|| connection.pragma_update(None, "journal_mode", "WAL"))
            .map_err(&failed)?;
        // A power failure may lose the last rows, but not the folders of these boxes.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(&failed)?;
        migrate(&mut connection, path, &MIGRATIONS)?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> Error {
        Error::store(&self.path, action)
    }

    /// Adds a box. Its name must be free.
    pub(super) fn add(&self, entry: &Entry) -> Result<()> {
        let sql = "INSERT INTO boxes (id, name, image, image_digest, created_ms) \
                   VALUES (?, ?, ?, ?, ?)";
        let created = i64::try_from(entry.created_ms).unwrap_or(i64::MAX);
        let row = params![entry.id, entry.name, entry.image, entry.image_digest, created];
        self.connection().execute(sql, row).map_err(|e| self.taken(e, &entry.name))?;
        Ok(())
    }

    /// Renames a box. The new name must be free.
    pub(super) fn rename(&self, id: &str, name: &str) -> Result<()> {
        let sql = "UPDATE boxes SET name = ? WHERE id = ?";
        self.connection().execute(sql, [name, id]).map_err(|e| self.taken(e, name))?;
        Ok(())
    }

    fn taken(&self, error: rusqlite::Error, name: &str) -> Error {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation) => Error::name_in_use(name),
            _ => self.failed("written")(error),
        }
    }

    /// Removes a box.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let sql = "DELETE FROM boxes WHERE id = ?";
        self.connection().execute(sql, [id]).map_err(self.failed("written"))?;
        Ok(())
    }

    /// All boxes, oldest first.
    pub(super) fn list(&self) -> Result<Vec<Entry>> {
        let connection = self.connection();
        let read = || {
            let sql = format!("SELECT {COLUMNS} FROM boxes ORDER BY created_ms, id");
            let mut statement = connection.prepare(&sql)?;
            statement.query_map([], Entry::read)?.collect::<Result<_, _>>()
        };
        read().map_err(self.failed("read"))
    }

    /// The digests of the images that boxes were created from.
    pub(super) fn image_digests(&self) -> Result<HashSet<String>> {
        let connection = self.connection();
        let read = || {
            let mut statement = connection.prepare("SELECT DISTINCT image_digest FROM boxes")?;
            statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()
        };
        read().map_err(self.failed("read"))
    }

    /// Finds a box by its ID, its name, or a unique prefix of its ID, in this order.
    pub(super) fn find(&self, query: &str) -> Result<Entry> {
        let connection = self.connection();
        let read = || {
            // The ID first: a box of an earlier release may have another box's ID as its name.
            let sql = format!(
                "SELECT {COLUMNS} FROM boxes WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC"
            );
            let exact = connection.query_row(&sql, [query], Entry::read).optional()?;
            if let Some(entry) = exact {
                return Ok(vec![entry]);
            }
            // Not LIKE: the text may contain its wildcards.
            let sql = format!("SELECT {COLUMNS} FROM boxes WHERE substr(id, 1, length(?1)) = ?1");
            let mut statement = connection.prepare(&sql)?;
            statement.query_map([query], Entry::read)?.collect::<Result<Vec<_>, _>>()
        };
        let mut found = read().map_err(self.failed("read"))?;
        match found.len() {
            1 if !query.is_empty() => Ok(found.remove(0)),
            0 | 1 => Err(Error::no_such_box(query)),
            _ if query.is_empty() => Err(Error::no_such_box(query)),
            _ => {
                let names: Vec<_> = found.into_iter().map(|entry| entry.name).collect();
                Err(Error::ambiguous(query, &names))
            }
        }
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn check_version(path: &Path, found: i64) -> Result<()> {
    let known = MIGRATIONS.len() as i64;
    if found > known {
        return Err(Error::newer_home(path, found, known));
    }
    Ok(())
}

/// Retries an operation while the database is busy. SQLite itself does not wait where a lock is upgraded, as when
/// several processes open a new database at once.
fn retry_while_busy(mut work: impl FnMut() -> rusqlite::Result<()>) -> rusqlite::Result<()> {
    let begun = Instant::now();
    loop {
        match work() {
            Err(e)
                if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && begun.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// Migrates the database to the newest schema, in one transaction. Another process may do the same concurrently.
fn migrate(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<()> {
    let failed = Error::store(path, "brought up to date");
    let run = |connection: &mut Connection| {
        if version(connection)? == migrations.len() as i64 {
            return Ok(());
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let from = usize::try_from(version(&transaction)?).unwrap_or(0);
        for migration in migrations.iter().skip(from) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
        transaction.commit()
    };
    run(connection).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn entry(id: &str, name: &str) -> Entry {
        Entry {
            id: id.into(),
            name: name.into(),
            image: "x".into(),
            image_digest: "sha256:0".into(),
            created_ms: 7,
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        (dir, store)
    }

    #[test]
    fn boxes_are_found_by_name_id_and_unique_prefix() {
        let (_dir, store) = store();
        for (id, name) in [("aa11", "web"), ("aa22", "db"), ("bb33", "aa"), ("%_", "odd")] {
            store.add(&entry(id, name)).unwrap();
        }
        let find = |query: &str| store.find(query).map(|entry| entry.id);
        assert_eq!(find("web").unwrap(), "aa11");
        assert_eq!(find("aa22").unwrap(), "aa22");
        assert_eq!(find("b").unwrap(), "bb33");
        assert_eq!(find("aa").unwrap(), "bb33", "a name goes before a prefix");
        let ambiguous = find("a").unwrap_err();
        assert_eq!(ambiguous.kind(), ErrorKind::Invalid);
        assert_eq!(ambiguous.message(), "a is ambiguous: it matches web, db");
        for none in ["", "c", "WEB", "_", "aa111"] {
            assert_eq!(find(none).unwrap_err().kind(), ErrorKind::NotFound, "{none:?}");
        }
        assert_eq!(find("%").unwrap(), "%_");
    }

    #[test]
    fn a_full_id_goes_before_a_name() {
        let (_dir, store) = store();
        for (id, name) in [("aa11", "bb22"), ("bb22", "web"), ("cc33", "aa11")] {
            store.add(&entry(id, name)).unwrap();
        }
        for id in ["aa11", "bb22", "cc33"] {
            assert_eq!(store.find(id).unwrap().id, id);
        }
        assert_eq!(store.find("web").unwrap().id, "bb22");
    }

    #[test]
    fn many_open_and_close_at_once() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| (0..10).for_each(|_| drop(Store::open(&path).unwrap())));
                }
            });
        }
    }

    #[test]
    fn names_are_unique() {
        let (_dir, store) = store();
        store.add(&entry("1", "web")).unwrap();
        store.add(&entry("2", "db")).unwrap();
        for taken in [store.add(&entry("3", "web")), store.rename("2", "web")] {
            assert_eq!(taken.unwrap_err().kind(), ErrorKind::AlreadyExists);
        }
        store.rename("1", "www").unwrap();
        store.rename("2", "web").unwrap();
        store.remove("1").unwrap();
        store.remove("1").unwrap();
        assert_eq!(store.list().unwrap(), [entry("2", "web")]);
    }

    #[test]
    fn an_old_database_is_migrated_and_a_newer_one_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        for version in 0..=MIGRATIONS.len() {
            let _ = std::fs::remove_file(&path);
            let mut connection = Connection::open(&path).unwrap();
            migrate(&mut connection, &path, &MIGRATIONS[..version]).unwrap();
            drop(connection);
            let store = Store::open(&path).unwrap();
            store.add(&entry("1", "web")).unwrap();
            assert_eq!(super::version(&store.connection()).unwrap(), MIGRATIONS.len() as i64);
        }
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        let newer = Store::open(&path).unwrap_err();
        assert!(newer.message().contains("(schema 99, "), "{newer}");
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(Store::open(&path).unwrap());
        let mut connection = Connection::open(&path).unwrap();
        let broken = [MIGRATIONS[0], "CREATE TABLE more (x TEXT) STRICT; CREATE NONSENSE;"];
        assert!(migrate(&mut connection, &path, &broken).is_err());
        assert_eq!(version(&connection).unwrap(), 1);
        let more = "SELECT count(*) FROM sqlite_schema WHERE name = 'more'";
        assert_eq!(connection.query_row(more, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }

    #[test]
    fn many_processes_may_open_a_new_database_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let store = Store::open(path).unwrap();
                    store.add(&entry(&n.to_string(), &format!("box-{n}"))).unwrap();
                });
            }
        });
        assert_eq!(Store::open(&path).unwrap().list().unwrap().len(), 8);
    }
}
