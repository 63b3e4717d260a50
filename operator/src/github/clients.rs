//! One client for each address, credential and CA bundle.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use rustls::RootCertStore;
use tokio::time::Instant;

use super::{
    CaBundle, Client, Credentials, CredentialsError, Error, Fingerprint, GitHubUrl, LastClients,
    ProxyWay, app,
    budget::Usage,
    connect::Reach,
    room::Room,
    transport::{Shared, Transport},
};

/// What nobody uses and nobody asked for in so long is dropped: a rotated credential, a deleted pool.
const IDLE: Duration = Duration::from_hours(1);
/// So many connections and budgets are kept that no pool uses: those of a credential that comes back, and of an address
/// that was left and does not answer. Whoever changes a credential again and again leaves no more than these behind.
const SPARE: usize = 16;
/// So many Secrets are kept as they were read. Whatever is beyond them is read again.
const MOST_READ: usize = 512;

/// Gives clients, and keeps them.
///
/// Pools of one server, credential and bundle share connections, budget and the App's token; those of one address
/// share the listing, too. Two credential holders share nothing, even where both may see the same.
#[derive(Default)]
pub struct Clients {
    /// With the system's own authorities: reading them takes long enough to do it once.
    shared: OnceLock<Shared>,
    reach: Arc<Reach>,
    kept: Mutex<Kept>,
    /// Those that pools used last: they alone keep a client.
    pub last: LastClients,
}

#[derive(Default)]
struct Kept {
    /// By the data of their Secret.
    credentials: HashMap<Fingerprint, (Result<Credentials, CredentialsError>, Instant)>,
    transports: HashMap<TransportKey, (Arc<Transport>, Instant)>,
    /// A client goes, with the lists that it has read, as soon as no pool has it.
    clients: HashMap<(TransportKey, GitHubUrl), Weak<Client>>,
    /// The part of the room that the answers for the pools of each namespace have.
    rooms: HashMap<String, Weak<Room>>,
}

impl Kept {
    /// The namespace's part of the room.
    fn room(&mut self, whole: &Arc<Room>, namespace: &str) -> Arc<Room> {
        self.rooms.retain(|_, room| room.strong_count() > 0);
        if let Some(room) = self.rooms.get(namespace).and_then(Weak::upgrade) {
            return room;
        }
        let room = Room::of_namespace(whole);
        self.rooms
            .insert(namespace.to_owned(), Arc::downgrade(&room));
        room
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TransportKey {
    origin: String,
    credentials: Fingerprint,
    /// Whose installation it works as, where the credentials do not say.
    account: Option<String>,
    ca: Option<Fingerprint>,
    through: Option<ProxyWay>,
}

impl TransportKey {
    /// Another one for another key, and no word of what is in it.
    fn id(&self) -> Fingerprint {
        let ca = self.ca.as_ref().map_or(&[][..], Fingerprint::as_bytes);
        let proxy = format!("{:?}", self.through);
        Fingerprint::of(&[
            self.origin.as_bytes(),
            self.credentials.as_bytes(),
            self.account.as_deref().unwrap_or_default().as_bytes(),
            ca,
            proxy.as_bytes(),
        ])
    }
}

impl Clients {
    /// None yet. They ask what is within `reach`.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self {
            reach: Arc::new(reach),
            ..Self::default()
        }
    }

    /// The credentials in a Secret's data, see [`Credentials::from_secret_data`]. The same data is read once: a private key
    /// is tried with a signature, and a thousand pools are reconciled when the operator starts.
    pub fn credentials(
        &self,
        data: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Credentials, CredentialsError> {
        let parts = data.iter().flat_map(|(key, value)| [key.as_bytes(), value]);
        let id = Fingerprint::of(&parts.collect::<Vec<_>>());
        if let Some(read) = touch(&mut self.kept().credentials, &id) {
            return read;
        }
        let read = Credentials::from_secret_data(data);
        let mut kept = self.kept();
        make_room(&mut kept.credentials, MOST_READ, |_| false);
        kept.credentials.insert(id, (read.clone(), Instant::now()));
        read
    }

    /// The client for this address as this credential, for a pool of this namespace: the same one for as long as somebody has
    /// it. Call it within a tokio runtime.
    ///
    /// Its answers have their place in the room of the namespace that asked for it first: who else has its credentials may
    /// have the same.
    pub fn client(
        &self,
        namespace: &str,
        url: &GitHubUrl,
        credentials: &Credentials,
        ca: Option<&CaBundle>,
        through: Option<&ProxyWay>,
    ) -> Result<Arc<Client>, Error> {
        let key = TransportKey {
            origin: url.api_origin(),
            credentials: credentials.fingerprint(),
            account: credentials
                .is_unlocated()
                .then(|| app::account(url.scope())),
            ca: ca.map(CaBundle::fingerprint),
            through: through.cloned(),
        };
        let mut kept = self.kept();
        let client_key = (key.clone(), url.clone());
        if let Some(client) = kept.clients.get(&client_key).and_then(Weak::upgrade) {
            // Its transport is as much in use.
            touch(&mut kept.transports, &key);
            return Ok(client);
        }
        let transport = if let Some(transport) = touch(&mut kept.transports, &key) {
            transport
        } else {
            let (shared, id) = (self.shared(), key.id());
            let room = kept.room(&shared.room, namespace);
            let transport = Transport::new(url, credentials, ca, through, shared, &room, id)?;
            let transport = Arc::new(transport);
            make_room(&mut kept.transports, SPARE, |transport| {
                Arc::strong_count(transport) > 1
            });
            kept.transports
                .insert(key, (transport.clone(), Instant::now()));
            transport
        };
        let client = Arc::new(Client::new(url.clone(), transport));
        kept.clients.retain(|_, client| client.strong_count() > 0);
        kept.clients.insert(client_key, Arc::downgrade(&client));
        Ok(client)
    }

    /// What each credential has spent that is in use, or was a moment ago.
    #[must_use]
    pub fn usage(&self) -> Vec<(Fingerprint, Usage)> {
        let kept = self.kept();
        let transports = kept.transports.values();
        transports
            .map(|(transport, _)| (transport.id(), transport.budget().usage()))
            .collect()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared(&self) -> &Shared {
        self.shared.get_or_init(|| Shared {
            roots: Arc::new(system_roots()),
            room: Room::whole(),
            reach: Arc::clone(&self.reach),
        })
    }
}

fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "could not read some of the system's certificate authorities");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "read the system's certificate authorities");
    roots
}

fn touch<K: Hash + Eq, V: Clone>(map: &mut HashMap<K, (V, Instant)>, key: &K) -> Option<V> {
    let (value, used) = map.get_mut(key)?;
    *used = Instant::now();
    Some(value.clone())
}

/// Makes room for one more: of what nobody uses, less than `most` stay, those that were asked for last.
fn make_room<K: Clone + Hash + Eq, V>(
    map: &mut HashMap<K, (V, Instant)>,
    most: usize,
    is_used: impl Fn(&V) -> bool,
) {
    map.retain(|_, (value, used)| is_used(value) || used.elapsed() < IDLE);
    loop {
        let spare = map.iter().filter(|(_, (value, _))| !is_used(value));
        if spare.clone().count() < most {
            return;
        }
        let oldest = spare.min_by_key(|(_, (_, used))| *used);
        let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
            return;
        };
        map.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        super::{
            credentials::tests::{data, pem},
            transport::SERVICE_AT_ONCE,
        },
        *,
    };
    use cuda_runner_plan::fixture;
    use cuda_runner_plan::model::pool::Pool;

    fn token(text: &str) -> Credentials {
        Credentials::from_secret_data(&data(&[("token", text)])).unwrap()
    }

    fn url(text: &str) -> GitHubUrl {
        GitHubUrl::parse(text, false).unwrap()
    }

    #[tokio::test]
    async fn what_is_equal_is_shared_and_nothing_else() {
        let clients = Clients::new(Reach::default());
        let get = |address: &str, credentials: &Credentials| {
            clients
                .client("ci", &url(address), credentials, None, None)
                .unwrap()
        };
        let one = get("https://github.com/o/a", &token("t1"));

        assert!(
            Arc::ptr_eq(&one, &get("https://github.com/O/a/", &token("t1"))),
            "the same place"
        );
        let neighbour = get("https://github.com/o/b", &token("t1"));
        assert!(!Arc::ptr_eq(&one, &neighbour), "another listing");
        assert!(
            Arc::ptr_eq(&one.transport, &neighbour.transport),
            "one budget"
        );
        let stranger = get("https://github.com/o/a", &token("t2"));
        assert!(
            !Arc::ptr_eq(&one.transport, &stranger.transport),
            "another credential"
        );
        let elsewhere = get("https://ghe.example.com/o/a", &token("t1"));
        assert!(
            !Arc::ptr_eq(&one.transport, &elsewhere.transport),
            "another server"
        );
        let used: BTreeSet<_> = clients.usage().into_iter().map(|(id, _)| id).collect();
        let ids = [&one, &stranger, &elsewhere].map(|client| client.credential());
        assert_eq!(used, BTreeSet::from(ids), "one entry for each budget");
        assert_eq!(used.len(), 3);
    }

    #[tokio::test]
    async fn who_fills_the_turns_of_the_service_holds_up_his_own_credential_alone() {
        // Given two credentials, one of which has all its requests to the service under way
        let clients = Clients::new(Reach::default());
        let address = url("https://github.com/o/a");
        let get = |text: &str| {
            clients
                .client("ci", &address, &token(text), None, None)
                .unwrap()
        };
        let (busy, other) = (get("busy"), get("other"));
        let mut turns = vec![];
        for _ in 0..SERVICE_AT_ONCE {
            turns.push(busy.transport.service_turn().await);
        }

        // Then the next one waits for the end of another, and who has the other credential does not
        let mut next = Box::pin(busy.transport.service_turn());
        assert!(futures::poll!(&mut next).is_pending());
        assert!(other.transport.service_turn().await.is_some());
        turns.pop();
        assert!(futures::poll!(&mut next).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_read_once_and_a_changed_one_again() {
        let clients = Clients::new(Reach::default());
        let secret = data(&[("token", "old")]);
        let old = clients.credentials(&secret).unwrap();
        assert_eq!(old.fingerprint(), token("old").fingerprint());

        // What was read is not read again
        let kept = |clients: &Clients| clients.kept().credentials.len();
        for (read, _) in clients.kept().credentials.values_mut() {
            *read = Ok(token("as-it-was-read"));
        }
        let again = clients.credentials(&secret).unwrap();
        assert_eq!(again.fingerprint(), token("as-it-was-read").fingerprint());

        // Unless it has changed; and nothing is kept for ever
        let rotated = clients.credentials(&data(&[("token", "new")])).unwrap();
        assert_eq!(rotated.fingerprint(), token("new").fingerprint());
        assert_eq!(kept(&clients), 2);
        tokio::time::advance(IDLE).await;
        clients.credentials(&data(&[])).unwrap_err();
        assert_eq!(kept(&clients), 1);
    }

    #[tokio::test]
    async fn another_bundle_is_another_client() {
        let clients = Clients::new(Reach::default());
        let pem = rcgen::generate_simple_self_signed(["ca".to_owned()])
            .unwrap()
            .cert
            .pem();
        let ca = CaBundle::from_pem(pem.as_bytes()).unwrap();
        let address = url("https://ghe.example.com/o/a");
        let without = clients
            .client("ci", &address, &token("t"), None, None)
            .unwrap();
        let with = clients
            .client("ci", &address, &token("t"), Some(&ca), None)
            .unwrap();
        assert!(!Arc::ptr_eq(&without.transport, &with.transport));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_is_dropped() {
        // Given a client that was used for hours, whose pool then got another credential
        let clients = Clients::new(Reach::default());
        let address = url("https://github.com/o/a");
        let get = |credentials: &Credentials| {
            let client = clients.client("ci", &address, credentials, None, None);
            client.unwrap()
        };
        let client = get(&token("old"));
        tokio::time::advance(2 * IDLE).await;
        assert!(Arc::ptr_eq(&client, &get(&token("old"))), "it is in use");
        let old = Arc::downgrade(&client);
        let budget = Arc::downgrade(&client.transport);
        drop(client);
        get(&token("new"));

        // Then it has gone, and its budget only when nobody has come back for long
        assert!(old.upgrade().is_none());
        assert!(Weak::ptr_eq(
            &budget,
            &Arc::downgrade(&get(&token("old")).transport)
        ));
        tokio::time::advance(IDLE).await;
        let app = data(&[
            ("app-id", "1"),
            ("installation-id", "2"),
            ("private-key", &pem()),
        ]);
        get(&Credentials::from_secret_data(&app).unwrap());
        assert!(budget.upgrade().is_none());
    }

    #[tokio::test]
    async fn whoever_changes_his_credentials_again_and_again_leaves_nothing_behind() {
        // Given a pool, and another tenant's
        let clients = Clients::new(Reach::default());
        let address = url("https://github.com/o/a");
        let use_of = |pool: &Pool, text: &str| {
            let credentials = clients.credentials(&data(&[("token", text)])).unwrap();
            let client = clients
                .client("ci", &address, &credentials, None, None)
                .unwrap();
            clients.last.uses(pool, &client);
            Arc::downgrade(&client)
        };
        let (pool, mut other) = (fixture::pool(1), fixture::pool(1));
        other.key.name = "other".to_owned();
        let neighbour = use_of(&other, "neighbour");

        // When the one changes its Secret a thousand times, and is reconciled each time
        for n in 0..1_000 {
            let before = use_of(&pool, &format!("t{n}"));
            let now = use_of(&pool, &format!("u{n}"));
            // Then what it used before has gone with all that was read by it
            assert!(before.upgrade().is_none() && now.upgrade().is_some());
        }

        // ... no more is left than a few that may come back, and they alone are told of
        let kept = clients.kept();
        let two_pools = 2;
        assert!(
            kept.clients.len() <= two_pools + 1,
            "{}",
            kept.clients.len()
        );
        assert!(kept.transports.len() <= two_pools + SPARE);
        assert!(kept.credentials.len() <= MOST_READ);
        drop(kept);
        assert!(clients.usage().len() <= two_pools + SPARE);
        // ... and the neighbour has what it had
        assert!(Weak::ptr_eq(&neighbour, &use_of(&other, "neighbour")));
    }
}
