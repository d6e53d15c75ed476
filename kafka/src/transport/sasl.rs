//! Proving a password to a broker: PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677).
//!
//! [`Scram`] is the client's half without IO; a broker that cannot prove that it knows the password
//! too is not believed.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use super::{
    security::{SaslConfig, SaslMechanism},
    tcp::Tcp,
};
use crate::{
    error::Error,
    wire::{
        KafkaString, Request, Response, sasl_authenticate_request::SaslAuthenticateRequestData,
        sasl_handshake_request::SaslHandshakeRequestData,
    },
};

/// Rounds of hashing that a broker may ask for: Kafka's default is 4096, its greatest 16384. What
/// asks for more wants our processor.
const ROUNDS: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// Authenticates a fresh connection.
pub(super) async fn authenticate(tcp: &Tcp, config: &SaslConfig) -> Result<(), Error> {
    let refused = |problem: String| Error::Authentication {
        address: tcp.address().to_owned(),
        username: config.username.clone(),
        problem,
    };
    let mechanism = KafkaString::from_static(config.mechanism.name());
    let handshake = SaslHandshakeRequestData::default().with_mechanism(mechanism);
    let Response::SaslHandshake(offered) = tcp.call(1, &Request::SaslHandshake(handshake)).await?
    else {
        return Err(refused("the broker does not do SASL".to_owned()));
    };
    if offered.error_code != 0 {
        let offered: Vec<_> = offered.mechanisms.iter().map(KafkaString::as_str).collect();
        let name = config.mechanism.name();
        return Err(refused(format!("{name} is not offered, but {}", offered.join(", "))));
    }
    match config.mechanism {
        SaslMechanism::Plain => {
            let message = format!("\0{}\0{}", config.username, config.password);
            exchange(tcp, message, &refused).await?;
        }
        SaslMechanism::ScramSha256 => scram::<S256>(tcp, config, &refused).await?,
        SaslMechanism::ScramSha512 => scram::<S512>(tcp, config, &refused).await?,
    }
    Ok(())
}

async fn scram<H: Hash>(
    tcp: &Tcp,
    config: &SaslConfig,
    refused: &(impl Fn(String) -> Error + Sync),
) -> Result<(), Error> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let scram = Scram::new(&config.username, &nonce);
    let challenge = exchange(tcp, scram.first(), refused).await?;
    let (last, proof) = scram
        .answer::<H>(&config.password, &challenge)
        .map_err(|problem| refused(problem.to_owned()))?;
    let verdict = exchange(tcp, last, refused).await?;
    if verdict.strip_prefix("v=") != Some(&proof) {
        return Err(refused("the broker does not know the password".to_owned()));
    }
    Ok(())
}

/// Sends a message of the mechanism and gives the broker's.
async fn exchange(
    tcp: &Tcp,
    message: String,
    refused: &(impl Fn(String) -> Error + Sync),
) -> Result<String, Error> {
    let request = SaslAuthenticateRequestData::default().with_auth_bytes(Bytes::from(message));
    match tcp.call(0, &Request::SaslAuthenticate(request)).await? {
        Response::SaslAuthenticate(answer) if answer.error_code == 0 => {
            String::from_utf8(answer.auth_bytes.to_vec())
                .map_err(|_| refused("the broker's message is not text".to_owned()))
        }
        Response::SaslAuthenticate(answer) => {
            let message = answer.error_message.map(|message| message.as_str().to_owned());
            Err(refused(message.unwrap_or_else(|| "refused".to_owned())))
        }
        _ => Err(refused("the broker does not do SASL".to_owned())),
    }
}

/// The hash of a SCRAM mechanism.
trait Hash {
    fn digest(bytes: &[u8]) -> Vec<u8>;
    fn keyed(key: &[u8], parts: &[&[u8]]) -> Vec<u8>;
}

struct S256;
struct S512;

impl Hash for S256 {
    fn digest(bytes: &[u8]) -> Vec<u8> {
        Sha256::digest(bytes).to_vec()
    }

    fn keyed(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().to_vec()
    }
}

impl Hash for S512 {
    fn digest(bytes: &[u8]) -> Vec<u8> {
        Sha512::digest(bytes).to_vec()
    }

    fn keyed(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes().to_vec()
    }
}

/// The client's half of SCRAM.
struct Scram {
    nonce: String,
    first_bare: String,
}

impl Scram {
    fn new(username: &str, nonce: &str) -> Self {
        let username = username.replace('=', "=3D").replace(',', "=2C");
        Self { nonce: nonce.to_owned(), first_bare: format!("n={username},r={nonce}") }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The client's last message, and what the broker then has to say.
    fn answer<H: Hash>(
        &self,
        password: &str,
        challenge: &str,
    ) -> Result<(String, String), &'static str> {
        let field = |name: &str| {
            let mut fields = challenge.split(',');
            fields.find_map(|field| field.strip_prefix(name)).ok_or("incomplete challenge")
        };
        let (nonce, salt, rounds) = (field("r=")?, field("s=")?, field("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("the challenge is not for us");
        }
        let salt = STANDARD.decode(salt).map_err(|_| "the salt is not base64")?;
        let rounds: u32 = rounds.parse().map_err(|_| "the rounds are not a number")?;
        if !ROUNDS.contains(&rounds) {
            return Err("a number of rounds that no broker of good will asks for");
        }
        let salted = stretch::<H>(password.as_bytes(), &salt, rounds);
        let client_key = H::keyed(&salted, &[b"Client Key"]);
        let without_proof = format!("c=biws,r={nonce}");
        let all = format!("{},{challenge},{without_proof}", self.first_bare);
        let signature = H::keyed(&H::digest(&client_key), &[all.as_bytes()]);
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server_key = H::keyed(&salted, &[b"Server Key"]);
        let server_proof = H::keyed(&server_key, &[all.as_bytes()]);
        let last = format!("{without_proof},p={}", STANDARD.encode(proof));
        Ok((last, STANDARD.encode(server_proof)))
    }
}

/// PBKDF2 for one block of output.
fn stretch<H: Hash>(password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
    let mut block = H::keyed(password, &[salt, &1_u32.to_be_bytes()]);
    let mut out = block.clone();
    for _ in 1..rounds {
        block = H::keyed(password, &[&block]);
        out.iter_mut().zip(&block).for_each(|(out, byte)| *out ^= byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exchange_of_rfc_7677_comes_out() {
        let scram = Scram::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, proof) = scram.answer::<S256>("pencil", challenge).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(proof, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_challenge_for_somebody_else_is_refused() {
        let scram = Scram::new("a=b,c", "nonce");
        assert_eq!(scram.first(), "n,,n=a=3Db=2Cc,r=nonce");
        for challenge in [
            "",
            "r=other,s=AA==,i=4096",
            "r=nonce,s=AA==,i=4096",
            "r=nonceX,s=!,i=4096",
            "r=nonceX,s=AA==,i=1",
            "r=nonceX,s=AA==,i=4294967295",
        ] {
            assert!(scram.answer::<S512>("secret", challenge).is_err(), "{challenge}");
        }
    }
}
