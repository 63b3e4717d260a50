//! Specs as they were last read: a template is parsed when it has changed, and not at each reconcile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarunner_crds::CudaRunner;
use kube::Resource as _;

use crate::watch::pools::key_of;
use cuda_runner_plan::model::pool::{Pool, PoolKey, Spec, SpecError};

/// The most bytes of templates, as JSON, whose specs are kept: a thousand pools with a small template each. What is read
/// may be many times as large.
const ROOM: usize = 2 * 1024 * 1024;

/// What the rest of one counts for.
const LEAST: usize = 1024;

/// What a spec came to.
pub type Read = Result<Arc<Spec>, SpecError>;

/// The specs of all pools, each as its last generation has it.
pub struct Specs {
    insecure_github: bool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_pool: HashMap<PoolKey, Entry>,
    bytes: usize,
}

struct Entry {
    uid: String,
    generation: i64,
    bytes: usize,
    read: Read,
}

impl Specs {
    /// None was read yet.
    #[must_use]
    pub fn new(insecure_github: bool) -> Self {
        Self {
            insecure_github,
            kept: Mutex::default(),
        }
    }

    /// The pool of a resource.
    #[must_use]
    pub fn pool(&self, resource: &CudaRunner) -> Pool {
        Pool::with(resource, self.read(resource))
    }

    /// The spec of a resource.
    pub fn read(&self, resource: &CudaRunner) -> Read {
        self.read_with(resource, |resource| {
            Spec::read(resource, self.insecure_github).map(Arc::new)
        })
    }

    fn read_with(&self, resource: &CudaRunner, read: impl FnOnce(&CudaRunner) -> Read) -> Read {
        let key = key_of(resource);
        let meta = resource.meta();
        let (Some(uid), Some(generation)) = (&meta.uid, meta.generation) else {
            return read(resource);
        };
        let known = self.with(|kept| {
            let entry = kept.by_pool.get(&key)?;
            (entry.uid == *uid && entry.generation == generation).then(|| entry.read.clone())
        });
        known.unwrap_or_else(|| {
            let read = read(resource);
            let template = resource.spec.template.as_ref();
            // Of one that cannot be carried out the reason is kept, and no template.
            let template = template.filter(|_| read.is_ok());
            let length = template.map_or(0, |template| template.to_string().len());
            let entry = Entry {
                uid: uid.clone(),
                generation,
                bytes: length.saturating_add(LEAST),
                read: read.clone(),
            };
            self.with(|kept| kept.put(key, entry));
            read
        })
    }

    /// Lets go of a pool's.
    pub fn forget(&self, key: &PoolKey) {
        self.with(|kept| kept.remove(key));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Kept) -> T) -> T {
        // A panic elsewhere leaves plain values behind, none of them half-written.
        work(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    /// Keeps one for which there is room. Others that have come first stay: to let them take turns would have all of them
    /// read again.
    fn put(&mut self, key: PoolKey, entry: Entry) {
        self.remove(&key);
        if self.bytes.saturating_add(entry.bytes) <= ROOM {
            self.bytes = self.bytes.saturating_add(entry.bytes);
            self.by_pool.insert(key, entry);
        }
    }

    fn remove(&mut self, key: &PoolKey) {
        if let Some(entry) = self.by_pool.remove(key) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::json;

    use super::*;
    use cuda_runner_plan::fixture;

    /// A resource with a generation and a template of about so many bytes.
    fn resource(name: &str, uid: &str, generation: i64, bytes: usize) -> CudaRunner {
        let mut resource = fixture::resource();
        resource.metadata.name = Some(name.to_owned());
        resource.metadata.uid = Some(uid.to_owned());
        resource.metadata.generation = Some(generation);
        let image = json!("x".repeat(bytes));
        resource.spec.template =
            Some(json!({"spec": {"containers": [{"name": "runner", "image": image}]}}));
        resource
    }

    /// How often specs are read for these resources, one after the other.
    fn reads(specs: &Specs, resources: &[CudaRunner]) -> usize {
        let count = Cell::new(0);
        for resource in resources {
            let fresh = Pool::read(resource, false);
            let read = specs.read_with(resource, |resource| {
                count.set(count.get() + 1);
                Spec::read(resource, false).map(Arc::new)
            });
            let hash = |read: &Read| read.as_ref().map(|s| s.template_hash.clone()).ok();
            assert_eq!(hash(&read), hash(&fresh.spec));
        }
        count.get()
    }

    #[test]
    fn a_spec_is_read_once_for_each_generation_of_a_resource() {
        let specs = Specs::new(false);
        let reconciles = [
            ("a", "1", 1, 10, 1, "it is new"),
            ("a", "1", 1, 10, 0, "nothing has changed"),
            ("a", "1", 2, 20, 1, "it has changed"),
            ("a", "2", 2, 30, 1, "a namesake has taken its place"),
            ("b", "3", 2, 10, 1, "it is another pool's"),
            ("a", "2", 2, 30, 0, "the other changes nothing"),
            ("c", "4", 1, 1_200_000, 1, "it is too long"),
            ("c", "4", 1, 1_200_000, 0, "it still is"),
        ];
        for (name, uid, generation, size, count, why) in reconciles {
            let resource = resource(name, uid, generation, size);
            assert_eq!(reads(&specs, &[resource]), count, "{why}");
        }
        specs.forget(&key_of(&resource("a", "2", 2, 30)));
        assert_eq!(
            reads(&specs, &[resource("a", "2", 2, 30)]),
            1,
            "it is forgotten"
        );
    }

    #[test]
    fn what_is_kept_of_specs_has_a_bound() {
        // Given more templates of the largest size than there is room for
        let largest = 60 * 1024;
        let many: Vec<_> = (0..200)
            .map(|n| resource(&format!("pool-{n}"), &n.to_string(), 1, largest))
            .collect();
        let specs = Specs::new(false);
        assert_eq!(reads(&specs, &many), many.len());

        // Then those that fit are kept, and the others are read again
        let (count, bytes) = specs.with(|kept| (kept.by_pool.len(), kept.bytes));
        assert!(count > 30 && bytes <= ROOM, "{count} of {bytes} bytes");
        assert_eq!(reads(&specs, &many), many.len() - count);

        // And what is forgotten makes room
        for pool in &many {
            specs.forget(&key_of(pool));
        }
        assert_eq!(specs.with(|kept| kept.bytes), 0);
    }
}
