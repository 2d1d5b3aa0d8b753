//! Properties that change on the source.

use cdc_core::catalog::Database;
use cdc_core::ids::{CollectionId, DbId};

use crate::source::Source;

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    of.iter().map(own).collect()
}

impl Source {
    pub fn set_properties(&mut self, id: CollectionId, properties: &[(&str, &str)]) {
        if let Some(live) = self.live.get_mut(&id) {
            live.catalog.properties = pairs(properties);
            let entry = live.catalog.clone();
            self.publish_now(entry);
        }
    }

    pub fn set_database_properties(&mut self, id: DbId, properties: &[(&str, &str)]) {
        if let Some(name) = self.databases.get(&id).cloned() {
            let properties = pairs(properties);
            self.catalog.put_database(Database {
                id,
                name,
                properties,
            });
        }
    }

    /// Parameters of the index of a collection.
    pub fn set_index_params(&mut self, id: CollectionId, params: &[(&str, &str)]) {
        if let Some(live) = self.live.get_mut(&id) {
            for index in live.catalog.indexes.values_mut() {
                index.params = pairs(params);
            }
            let entry = live.catalog.clone();
            self.publish_now(entry);
        }
    }
}
