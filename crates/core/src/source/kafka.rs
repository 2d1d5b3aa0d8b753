//! Kafka. One topic per physical channel of Milvus, of which partition 0 alone is written to
//! (`pkg/mq/msgstream/mqwrapper/kafka`); the position is the offset.
//!
//! *One client for all channels.* A client of librdkafka has four to six threads, and a connection to each broker on
//! which one request fetches for all its channels. So the readers of a source share one, as partitions that are assigned
//! and taken away one by one, each with a queue of its own; a channel that has a second reader, one that catches up, is
//! assigned to a second client for as long as that reads. What that costs: a channel whose queue was full waits for the
//! answer to the request that left it out, at most 50 ms.
//!
//! *Nothing is left behind.* No group is joined and no offset is committed. The name of a group has to be given for an
//! assignment nevertheless, and the client asks who would coordinate it; a refusal of that is ignored. Topics are never
//! made by asking for them.
//!
//! *A position that is lost* is an error of the broker, because the client is told not to go on elsewhere by itself
//! (`auto.offset.reset: error`). Offsets have gaps that are none: marks of transactions, messages that were compacted
//! away. An offset that is not the next one is believed when a second, fresh assignment begins with it as well, and what
//! the topic holds still includes the wanted one; before each assignment, after each trouble and each half minute of
//! silence that is asked for. Limit: a topic that was deleted, made anew and has grown beyond the wanted offset before
//! anybody looked is not told from the old one.
//!
//! *Bounded.* What is fetched ahead is counted per channel by the client: [`KafkaConfig::prefetch`] in its queue, as much
//! again in an answer on its way. A larger message comes alone: a broker answers with one batch at least. Limit: Milvus
//! compresses, and an answer is bounded as it is sent; unpacked in the queue it is larger by as much as it was packed.

#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
mod native;
#[cfg(feature = "kafka")]
mod reader;
mod settings;

#[cfg(feature = "kafka")]
pub use reader::KafkaSource;
pub use settings::{ClientCertificate, KafkaConfig, KafkaSasl, KafkaTls, SaslMechanism};
