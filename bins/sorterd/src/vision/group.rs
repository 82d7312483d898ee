//! Grouping by looks: k-means over the vectors.
//!
//! Invariant: the same vectors, `k` and seed give the same groups, on any thread. Owns: nothing.

use opencv::core::{self, Mat, TermCriteria};
use opencv::prelude::*;

/// How often k-means starts anew; the tightest result counts.
const ATTEMPTS: i32 = 20;
/// Most steps of one attempt, and the movement of the centres that ends it.
const STEPS_MAX: i32 = 100;
const MOVE_MIN: f64 = 1e-6;

/// Why nothing can be grouped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to put them into.
    #[error("cannot put {0} vectors into 0 groups")]
    NoGroup(usize),
    /// From different vectorizers.
    #[error("the vectors to be grouped have {0} and {1} values: they come from different vectorizers")]
    Lengths(usize, usize),
    /// Not numbers.
    #[error("the vector at {0} has values that are no numbers; the vectorizer's model is broken")]
    NotFinite(usize),
    /// More than OpenCV counts.
    #[error("{0} vectors are too many to be grouped")]
    Many(usize),
    /// OpenCV refused something.
    #[error("OpenCV failed to run k-means on {count} vectors")]
    OpenCv {
        /// How many.
        count: usize,
        /// What it says.
        source: opencv::Error,
    },
}

/// The group of each vector, below `k`, numbered in the order in which they first occur. As many groups as vectors or
/// more: each has its own. Some groups stay empty where there are fewer different vectors than groups.
///
/// # Errors
/// [`Error`]: no group, vectors of different lengths or with values that are no numbers.
pub fn kmeans(vectors: &[Vec<f32>], k: usize, seed: u64) -> Result<Vec<usize>, Error> {
    let Some(first) = vectors.first() else { return Ok(Vec::new()) };
    let count = vectors.len();
    if k == 0 {
        return Err(Error::NoGroup(count));
    }
    for (n, vector) in vectors.iter().enumerate() {
        if vector.len() != first.len() {
            return Err(Error::Lengths(first.len(), vector.len()));
        }
        if !vector.iter().all(|v| v.is_finite()) {
            return Err(Error::NotFinite(n));
        }
    }
    if k >= count {
        return Ok((0..count).collect());
    }
    if k == 1 || first.is_empty() {
        return Ok(vec![0; count]);
    }
    let (Ok(rows), Ok(groups)) = (i32::try_from(count), i32::try_from(k)) else {
        return Err(Error::Many(count));
    };
    let labels =
        run(&vectors.concat(), rows, groups, seed).map_err(|source| Error::OpenCv { count, source })?;
    Ok(renumbered(&labels))
}

fn run(flat: &[f32], rows: i32, k: i32, seed: u64) -> opencv::Result<Vec<i32>> {
    let columns = i32::try_from(flat.len()).unwrap_or(i32::MAX) / rows;
    let data = Mat::new_rows_cols_with_data(rows, columns, flat)?;
    let mut labels = Mat::default();
    let ends = TermCriteria::new(
        core::TermCriteria_Type::COUNT as i32 | core::TermCriteria_Type::EPS as i32,
        STEPS_MAX,
        MOVE_MIN,
    )?;
    // The generator belongs to the calling thread, so nobody else draws from it in between.
    core::set_rng_seed((seed ^ (seed >> 32)) as u32 as i32)?;
    core::kmeans_def(&data, k, &mut labels, ends, ATTEMPTS, core::KMEANS_PP_CENTERS)?;
    Ok(labels.data_typed::<i32>()?.to_vec())
}

/// The labels in the order in which they first occur.
fn renumbered(labels: &[i32]) -> Vec<usize> {
    let mut seen: Vec<i32> = Vec::new();
    let number = |label: &i32| {
        seen.iter().position(|s| s == label).unwrap_or_else(|| {
            seen.push(*label);
            seen.len() - 1
        })
    };
    labels.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `per` points around each centre, the centres taking turns.
    fn clouds(centres: &[[f32; 3]], per: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut around = |c: &f32| c + random.f32() - 0.5;
        (0..per * centres.len())
            .map(|n| centres[n % centres.len()].iter().map(&mut around).collect())
            .collect()
    }

    const CENTRES: [[f32; 3]; 4] = [[0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 5.0, 5.0]];

    #[test]
    fn clouds_are_found_and_numbered_in_order() {
        for seed in 0..50 {
            let vectors = clouds(&CENTRES, 12, seed);
            let groups = kmeans(&vectors, 4, seed).unwrap();
            let expected: Vec<usize> = (0..48).map(|n| n % 4).collect();
            assert_eq!(groups, expected, "seed {seed}");
        }
    }

    #[test]
    fn the_same_input_gives_the_same_groups_on_any_thread() {
        // One cloud: where it is split depends on the random start alone.
        let vectors = clouds(&[[0.0; 3]], 60, 3);
        let expected = kmeans(&vectors, 5, 11).unwrap();
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let vectors = vectors.clone();
                std::thread::spawn(move || {
                    // Others in between, also with other seeds.
                    kmeans(&vectors, 3, n).unwrap();
                    kmeans(&vectors, 5, 11).unwrap()
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
        assert_eq!(expected.iter().max(), Some(&4));
    }

    #[test]
    fn few_vectors_and_many_groups() {
        let vectors = clouds(&CENTRES, 1, 1);
        assert_eq!(kmeans(&vectors, 4, 0).unwrap(), [0, 1, 2, 3]);
        assert_eq!(kmeans(&vectors, 9, 0).unwrap(), [0, 1, 2, 3]);
        assert_eq!(kmeans(&vectors, 1, 0).unwrap(), [0; 4]);
        assert!(kmeans(&[], 0, 0).unwrap().is_empty());
        assert!(matches!(kmeans(&vectors, 0, 0), Err(Error::NoGroup(4))));
        // All the same: whatever the groups are, they are below k.
        let same = vec![vec![1.0, 2.0]; 6];
        assert!(kmeans(&same, 3, 5).unwrap().iter().all(|g| *g < 3));
    }

    #[test]
    fn what_is_no_vector_is_refused() {
        assert!(matches!(kmeans(&[vec![1.0], vec![1.0, 2.0]], 1, 0), Err(Error::Lengths(1, 2))));
        assert!(matches!(kmeans(&[vec![1.0], vec![f32::NAN]], 2, 0), Err(Error::NotFinite(1))));
    }
}
