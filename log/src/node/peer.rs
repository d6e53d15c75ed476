//! How a broker reaches another.

use std::sync::Arc;

use tailwater_kafka::{BrokerConnection, BrokerId};
use tokio::sync::watch;

use crate::Config;
use crate::metadata::Image;

/// A connection to `broker`, where the metadata says that it is.
///
/// # Errors
/// Why there is none, in words: it is tried again with other metadata.
pub(crate) async fn connect(
    config: &Config,
    image: &watch::Receiver<Arc<Image>>,
    broker: BrokerId,
) -> Result<BrokerConnection, String> {
    let address = image.borrow().broker(broker).map(|state| state.address());
    let address = address.ok_or_else(|| format!("broker {broker} is not registered"))?;
    let connected = BrokerConnection::connect(&config.peers, broker, &address).await;
    connected.map_err(|error| error.to_string())
}
