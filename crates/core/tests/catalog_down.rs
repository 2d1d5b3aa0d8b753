//! The etcd catalog without an etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use cdc_core::catalog::etcd::{EtcdCatalog, EtcdConfig, probe};
use cdc_core::catalog::{Catalog, CatalogError};
use cdc_core::error::ErrorClass;
use cdc_core::ids::CollectionId;
use cdc_core::secret::Secret;

/// A port at which nobody listens (any more).
fn nobody() -> EtcdConfig {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = vec![listener.local_addr().unwrap().to_string()];
    let timeout = Duration::from_secs(2);
    EtcdConfig {
        endpoints,
        connect_timeout: timeout,
        request_timeout: timeout,
        ..EtcdConfig::default()
    }
}

async fn error_of(catalog: &EtcdCatalog) -> CatalogError {
    let wait = async {
        loop {
            if let Some(error) = catalog.health().error {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), wait)
        .await
        .expect("the health names no error")
}

#[tokio::test]
async fn a_source_that_is_down_is_a_state_and_not_a_failure() {
    let config = nobody();
    let catalog = EtcdCatalog::connect(config.clone());
    let error = error_of(&catalog).await;
    assert!(error.to_string().contains(&config.endpoints[0]), "{error}");
    assert_eq!(error.problem().class, ErrorClass::Transient);
    assert_eq!(catalog.subscribe().borrow().revision, 0);
    assert!(catalog.read_collection(CollectionId(1)).await.is_err());
    assert!(catalog.tso_bound().await.is_err());
    assert!(matches!(
        probe(&config).await,
        Err(CatalogError::Unreachable { .. })
    ));
}

#[tokio::test]
async fn the_password_is_never_shown() {
    let mut config = nobody();
    config.endpoints = vec![format!("http://user:open-sesame@{}", config.endpoints[0])];
    config.username = "root".to_owned();
    config.password = Secret::new("open-sesame");
    assert!(
        !format!("{config:?}")
            .replace(&config.endpoints[0], "")
            .contains("open-sesame")
    );
    let error = error_of(&EtcdCatalog::connect(config)).await;
    assert!(
        !format!("{error:?} {error}").contains("open-sesame"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_dropped_catalog_ends_its_task() {
    let catalog = EtcdCatalog::connect(nobody());
    let mut views = catalog.subscribe();
    drop(catalog);
    let ended = tokio::time::timeout(Duration::from_secs(5), views.changed())
        .await
        .expect("the task goes on");
    assert!(ended.is_err());
}
