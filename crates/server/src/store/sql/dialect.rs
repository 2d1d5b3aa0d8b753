//! The few statements the store is made of, in each database's own words.
//!
//! Timestamps of Milvus are 20 digits with leading zeros: the integers of these databases have a sign, and text of one
//! length orders as the numbers do.

use super::connection::Value;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
    /// And MariaDB.
    Mysql,
}

/// A database, and what the names of our tables begin with there.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub(crate) database: Database,
    pub(crate) prefix: String,
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) values: Vec<Value>,
    /// It is an error if it hits no row.
    pub(crate) must_hit: bool,
    /// Of an upsert: what others may share.
    pub(crate) upsert: Option<Upsert>,
}

/// An upsert of one row: others of this form may be one statement with it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Upsert {
    /// Up to `VALUES`.
    head: String,
    /// What is behind the rows.
    tail: String,
    /// How many of the values are its key.
    keys: usize,
}

/// Rows in one statement.
const ROWS: usize = 64;
/// Bytes of one statement's values: below what any server takes at once.
const BYTES: usize = 64 << 10;

impl Statement {
    fn bytes(&self) -> usize {
        let bytes = |value: &Value| match value {
            Value::Text(text) => text.len(),
            Value::Int(_) => 8,
        };
        self.values.iter().map(bytes).sum()
    }
}

/// What an upsert does to a column that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keep {
    New,
    Larger,
}

type Columns<'a> = &'a [(&'a str, Value)];

impl Dialect {
    /// How a transaction begins that writes.
    pub(crate) fn begin(&self) -> &'static str {
        match self.database {
            Database::Sqlite => "BEGIN IMMEDIATE",
            Database::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
            Database::Mysql => "START TRANSACTION",
        }
    }

    /// How one begins that reads everything as of one instant.
    pub(crate) fn begin_snapshot(&self) -> &'static str {
        match self.database {
            Database::Sqlite => "BEGIN",
            Database::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Database::Mysql => "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
        }
    }

    pub(crate) fn name(&self, name: &str) -> String {
        match self.database {
            Database::Mysql => format!("`{name}`"),
            _ => format!("\"{name}\""),
        }
    }

    pub(crate) fn table(&self, name: &str) -> String {
        self.name(&format!("{}{name}", self.prefix))
    }

    /// Writes the `?` of `sql` in the way of the database.
    pub(crate) fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        let sql = match self.database {
            Database::Postgres => numbered(sql),
            _ => sql.to_owned(),
        };
        Statement {
            sql,
            values,
            must_hit: false,
            upsert: None,
        }
    }

    /// The same in fewer statements: upserts that stand one behind the other and have one form are one, if they are of
    /// different rows.
    pub(crate) fn merged(&self, all: Vec<Statement>) -> Vec<Statement> {
        let mut merged = Vec::new();
        let mut rows: Vec<Statement> = Vec::new();
        let mut bytes = 0;
        for statement in all {
            bytes += statement.bytes();
            let joins = rows.len() < ROWS
                && bytes <= BYTES
                && statement.upsert.as_ref().is_some_and(|new| {
                    rows.first().is_some_and(|r| r.upsert.as_ref() == Some(new))
                        && rows
                            .iter()
                            .all(|r| r.values[..new.keys] != statement.values[..new.keys])
                });
            if !joins {
                merged.extend(self.one_of(std::mem::take(&mut rows)));
                bytes = statement.bytes();
            }
            rows.push(statement);
        }
        merged.extend(self.one_of(rows));
        merged
    }

    fn one_of(&self, mut rows: Vec<Statement>) -> Option<Statement> {
        if rows.len() < 2 {
            return rows.pop();
        }
        let Upsert { head, tail, .. } = rows.first()?.upsert.clone()?;
        let row = format!("({})", vec!["?"; rows.first()?.values.len()].join(", "));
        let sql = format!("{head} {}{tail}", vec![row; rows.len()].join(", "));
        let values = rows.into_iter().flat_map(|row| row.values).collect();
        Some(self.statement(&sql, values))
    }

    pub(crate) fn insert(&self, table: &str, columns: Columns<'_>) -> Statement {
        let (head, row, values) = self.insert_sql(table, columns.iter());
        self.statement(&format!("{head} {row}"), values)
    }

    fn insert_sql<'a>(
        &self,
        table: &str,
        columns: impl Iterator<Item = &'a (&'a str, Value)>,
    ) -> (String, String, Vec<Value>) {
        let (names, values): (Vec<String>, Vec<Value>) =
            columns.map(|(n, v)| (self.name(n), v.clone())).unzip();
        let marks = vec!["?"; names.len()].join(", ");
        let head = format!(
            "INSERT INTO {} ({}) VALUES",
            self.table(table),
            names.join(", ")
        );
        (head, format!("({marks})"), values)
    }

    /// Inserts a row, or changes the one of these keys.
    pub(crate) fn upsert(
        &self,
        table: &str,
        keys: Columns<'_>,
        columns: &[(&str, Value, Keep)],
    ) -> Statement {
        let plain: Vec<(&str, Value)> = columns.iter().map(|(n, v, _)| (*n, v.clone())).collect();
        let (head, row, values) = self.insert_sql(table, keys.iter().chain(&plain));
        let new = |name: &str| match self.database {
            Database::Mysql => format!("VALUES({name})"),
            _ => format!("excluded.{name}"),
        };
        let set: Vec<String> = columns
            .iter()
            .map(|(column, _, keep)| {
                let name = self.name(column);
                let new = new(&name);
                match keep {
                    Keep::New => format!("{name} = {new}"),
                    Keep::Larger => {
                        let old = match self.database {
                            Database::Mysql => name.clone(),
                            _ => format!("{}.{name}", self.table(table)),
                        };
                        format!("{name} = {}({old}, {new})", self.larger())
                    }
                }
            })
            .collect();
        let set = set.join(", ");
        let keys: Vec<String> = keys.iter().map(|(key, _)| self.name(key)).collect();
        let tail = match self.database {
            Database::Mysql => format!(" ON DUPLICATE KEY UPDATE {set}"),
            _ => format!(" ON CONFLICT ({}) DO UPDATE SET {set}", keys.join(", ")),
        };
        let sql = format!("{head} {row}{tail}");
        let keys = keys.len();
        Statement {
            upsert: Some(Upsert { head, tail, keys }),
            ..self.statement(&sql, values)
        }
    }

    fn larger(&self) -> &'static str {
        match self.database {
            Database::Sqlite => "max",
            _ => "GREATEST",
        }
    }

    pub(crate) fn update(&self, table: &str, keys: Columns<'_>, set: Columns<'_>) -> Statement {
        let changes: Vec<String> = set
            .iter()
            .map(|(column, _)| format!("{} = ?", self.name(column)))
            .collect();
        let values = set.iter().chain(keys).map(|(_, v)| v.clone()).collect();
        let sql = format!(
            "UPDATE {} SET {} WHERE {}",
            self.table(table),
            changes.join(", "),
            self.matching(keys)
        );
        self.statement(&sql, values)
    }

    /// Makes a column larger, never smaller; nothing if there is no such row.
    pub(crate) fn raise(
        &self,
        table: &str,
        keys: Columns<'_>,
        (column, value): (&str, Value),
    ) -> Statement {
        let name = self.name(column);
        let sql = format!(
            "UPDATE {} SET {name} = {}({name}, ?) WHERE {}",
            self.table(table),
            self.larger(),
            self.matching(keys)
        );
        let values = std::iter::once(value)
            .chain(keys.iter().map(|(_, v)| v.clone()))
            .collect();
        self.statement(&sql, values)
    }

    pub(crate) fn delete(&self, table: &str, keys: Columns<'_>) -> Statement {
        let sql = format!(
            "DELETE FROM {} WHERE {}",
            self.table(table),
            self.matching(keys)
        );
        self.statement(&sql, keys.iter().map(|(_, v)| v.clone()).collect())
    }

    /// `more`: what follows the condition.
    pub(crate) fn select(
        &self,
        table: &str,
        columns: &[&str],
        keys: Columns<'_>,
        more: &str,
    ) -> Statement {
        let names: Vec<String> = columns.iter().map(|column| self.name(column)).collect();
        let condition = match keys {
            [] => String::new(),
            keys => format!(" WHERE {}", self.matching(keys)),
        };
        let sql = format!(
            "SELECT {} FROM {}{condition}{more}",
            names.join(", "),
            self.table(table)
        );
        self.statement(&sql, keys.iter().map(|(_, v)| v.clone()).collect())
    }

    /// The events behind `after`, of one task or of all, the oldest first.
    pub(crate) fn history(&self, of: Option<&str>, after: i64, limit: u32) -> Statement {
        let columns = ["seq", "task", "at", "kind", "text"];
        let names = columns.map(|column| self.name(column)).join(", ");
        let (table, seq) = (self.table("events"), self.name("seq"));
        let mut values = vec![Value::Int(after)];
        values.extend(of.map(Value::from));
        let of = match of {
            Some(_) => " AND task = ?",
            None => "",
        };
        let sql =
            format!("SELECT {names} FROM {table} WHERE {seq} > ?{of} ORDER BY {seq} LIMIT {limit}");
        self.statement(&sql, values)
    }

    fn matching(&self, keys: Columns<'_>) -> String {
        let all: Vec<String> = keys
            .iter()
            .map(|(key, _)| format!("{} = ?", self.name(key)))
            .collect();
        all.join(" AND ")
    }
}

/// `?`, `?` → `$1`, `$2`. No statement of ours has a question mark in a text.
fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 8);
    let mut n = 0;
    for part in sql.split_inclusive('?') {
        match part.strip_suffix('?') {
            Some(before) => {
                n += 1;
                out.push_str(before);
                out.push_str(&format!("${n}"));
            }
            None => out.push_str(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(database: Database, prefix: &str) -> Dialect {
        Dialect {
            database,
            prefix: prefix.to_owned(),
        }
    }

    #[test]
    fn each_database_gets_its_own_words() {
        let keys = [("task", Value::from("t"))];
        let columns = [("sent", Value::from("9"), Keep::Larger)];
        let sql = |d: Dialect| d.upsert("channels", &keys, &columns).sql;
        assert_eq!(
            sql(dialect(Database::Postgres, "cdc_")),
            "INSERT INTO \"cdc_channels\" (\"task\", \"sent\") VALUES ($1, $2) ON CONFLICT (\"task\") \
             DO UPDATE SET \"sent\" = GREATEST(\"cdc_channels\".\"sent\", excluded.\"sent\")"
        );
        assert_eq!(
            sql(dialect(Database::Mysql, "cdc_")),
            "INSERT INTO `cdc_channels` (`task`, `sent`) VALUES (?, ?) ON DUPLICATE KEY UPDATE \
             `sent` = GREATEST(`sent`, VALUES(`sent`))"
        );
        assert_eq!(
            sql(dialect(Database::Sqlite, "")),
            "INSERT INTO \"channels\" (\"task\", \"sent\") VALUES (?, ?) ON CONFLICT (\"task\") \
             DO UPDATE SET \"sent\" = max(\"channels\".\"sent\", excluded.\"sent\")"
        );
    }

    #[test]
    fn upserts_of_one_form_and_different_rows_are_one_statement() {
        let d = dialect(Database::Postgres, "");
        let floor = |channel: &str, floor: &str| {
            let keys = [("channel", Value::from(channel))];
            d.upsert("floors", &keys, &[("floor", floor.into(), Keep::Larger)])
        };
        let other = d.delete("floors", &[("channel", Value::from("c"))]);
        let all = vec![
            floor("a", "1"),
            floor("b", "2"),
            floor("a", "3"),
            other.clone(),
            floor("c", "4"),
        ];
        let merged = d.merged(all);
        assert_eq!(
            merged[0].sql,
            "INSERT INTO \"floors\" (\"channel\", \"floor\") VALUES ($1, $2), ($3, $4) ON CONFLICT (\"channel\") \
             DO UPDATE SET \"floor\" = GREATEST(\"floors\".\"floor\", excluded.\"floor\")"
        );
        assert_eq!(merged[0].values, ["a", "1", "b", "2"].map(Value::from));
        assert_eq!(merged[1..], [floor("a", "3"), other, floor("c", "4")]);
        assert!(d.merged(Vec::new()).is_empty());
    }
}
