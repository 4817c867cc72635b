//! Consistent hashing: equal hashes meet the same endpoint, and few of them move when endpoints come and go.

use crate::cluster::LbPolicy;
use crate::endpoint::{Endpoint, EndpointAddress, Endpoints};
use crate::route::{hash_bytes, mix};

/// Where hashes fall.
#[derive(Debug)]
pub(super) enum Ring {
    /// Places sorted by hash; a hash belongs to the next place.
    Places(Vec<(u64, usize)>),
    /// A table indexed by the hash.
    Table(Vec<usize>),
}

impl Ring {
    /// None if the policy is not one by hash.
    pub(super) fn new(policy: LbPolicy, endpoints: &Endpoints, indices: &[usize]) -> Option<Self> {
        match policy {
            LbPolicy::RingHash { ring_min } => Some(Self::places(ring_min, endpoints, indices)),
            LbPolicy::Maglev { table } => Some(Self::table(table as usize, endpoints, indices)),
            LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. } | LbPolicy::Random => None,
        }
    }

    fn places(ring_min: u32, endpoints: &Endpoints, indices: &[usize]) -> Self {
        let total: u64 = indices.iter().map(|index| u64::from(endpoints.all()[*index].weight)).sum();
        let mut places = Vec::new();
        for index in indices {
            let endpoint = &endpoints.all()[*index];
            let share = (u64::from(ring_min) * u64::from(endpoint.weight)).div_ceil(total.max(1)).max(1);
            let base = hash_of(endpoint);
            places.extend((0..share).map(|place| (mix(base ^ mix(place)), *index)));
        }
        places.sort_unstable();
        Self::Places(places)
    }

    /// The table of Maglev: the endpoints take turns, by weight, in choosing their next favourite free place.
    fn table(size: usize, endpoints: &Endpoints, indices: &[usize]) -> Self {
        if indices.is_empty() {
            return Self::Table(Vec::new());
        }
        let mut seats: Vec<Seat> =
            indices.iter().map(|index| Seat::new(*index, &endpoints.all()[*index], size)).collect();
        let heaviest = seats.iter().map(|seat| seat.weight).max().unwrap_or(1);
        let mut table = vec![usize::MAX; size];
        let mut free = size;
        let mut round = 1;
        while free > 0 {
            for seat in &mut seats {
                if free == 0 {
                    break;
                }
                if seat.taken * heaviest < round * seat.weight {
                    seat.take_next(&mut table);
                    free -= 1;
                }
            }
            round += 1;
        }
        Self::Table(table)
    }

    /// The endpoint that a hash belongs to, or the next one that may be picked.
    pub(super) fn pick(&self, hash: u64, members: usize, may: &dyn Fn(usize) -> bool) -> Option<usize> {
        let (len, start) = match self {
            Self::Places(places) => (places.len(), places.partition_point(|(place, _)| *place < hash)),
            Self::Table(table) => (table.len(), usize::try_from(hash.checked_rem(table.len() as u64)?).ok()?),
        };
        let at = |step: usize| match self {
            Self::Places(places) => places.get((start + step) % len).map(|(_, index)| *index),
            Self::Table(table) => table.get((start + step) % len).copied(),
        };
        if len == 0 || members == 0 {
            return None;
        }
        (0..len).filter_map(at).find(|index| may(*index))
    }
}

struct Seat {
    index: usize,
    weight: u64,
    offset: usize,
    skip: usize,
    next: usize,
    taken: u64,
}

impl Seat {
    fn new(index: usize, endpoint: &Endpoint, size: usize) -> Self {
        let hash = hash_of(endpoint);
        let within = |hash: u64, size: usize| usize::try_from(hash % (size as u64).max(1)).unwrap_or(0);
        Self {
            index,
            weight: endpoint.weight.into(),
            offset: within(hash, size),
            // A prime size makes every skip visit all places.
            skip: within(mix(hash), size - 1) + 1,
            next: 0,
            taken: 0,
        }
    }

    fn take_next(&mut self, table: &mut [usize]) {
        loop {
            let place = (self.offset + self.next * self.skip) % table.len();
            self.next += 1;
            if table[place] == usize::MAX {
                table[place] = self.index;
                self.taken += 1;
                return;
            }
        }
    }
}

fn hash_of(endpoint: &Endpoint) -> u64 {
    match &endpoint.address {
        EndpointAddress::Ip(address) => hash_bytes(address.to_string().as_bytes()),
        EndpointAddress::Dns { host, port } => hash_bytes(format!("{host}:{port}").as_bytes()),
        EndpointAddress::Pipe(path) => hash_bytes(path.as_os_str().as_encoded_bytes()),
    }
}
