//! Where the arm has to go for what was seen: a box on a picture becomes two pulse widths, and what was seen on several
//! pictures becomes one object.
//!
//! Pictures are taken with the arm's base at the pulse width that names them. `servo0` turns the base, `servo1` moves the
//! gripper towards or away from it.

use serde_json::Value;

use crate::found::Found;

/// Two sightings whose pulse widths both differ by less than this are one object.
pub const SAME_WITHIN: f64 = 150.0;

/// What an arm is like, as it says with each request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArmConstants {
    /// From the base's axis to the middle of a picture, in pixels.
    pub arm_radius: f64,
    /// Pulse width of `servo1` at the upper edge of a picture.
    pub dist_max_as_pw: f64,
    /// Pulse width of `servo1` at the lower edge of a picture.
    pub dist_min_as_pw: f64,
    /// How far the base turns, in degrees ...
    pub rotation_range_as_deg: f64,
    /// ... for so much of pulse width.
    pub rotation_range_as_pw: f64,
}

impl ArmConstants {
    /// Reads them from a request.
    ///
    /// # Errors
    /// Which one is missing or no use.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let number = |key: &str| {
            let found = value.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
            found.ok_or_else(|| format!("arm_constants.{key} is missing or no number"))
        };
        let constants = Self {
            arm_radius: number("arm_radius")?,
            dist_max_as_pw: number("dist_max_as_pw")?,
            dist_min_as_pw: number("dist_min_as_pw")?,
            rotation_range_as_deg: number("rotation_range_as_deg")?,
            rotation_range_as_pw: number("rotation_range_as_pw")?,
        };
        if constants.rotation_range_as_deg == 0.0 {
            return Err("arm_constants.rotation_range_as_deg is 0: the base would not turn".into());
        }
        Ok(constants)
    }
}

/// Pulse widths of both servos.
pub type Servos = [f64; 2];

/// The pulse widths that bring the gripper to the middle of `found`, which was seen on a picture of `width` x `height`
/// pixels taken at the pulse width `base`. `None` where there are none: for an object on the base's axis.
#[must_use]
pub fn servos(found: &Found, base: u32, (width, height): (u32, u32), arm: &ArmConstants) -> Option<Servos> {
    let (width, height) = (f64::from(width), f64::from(height));
    // In the 64 bits of the division and then cut off, as the arms' own calculation does.
    let middle = |a: i32, b: i32| ((f64::from(a) + f64::from(b)) / 2.0).trunc();
    let (x, y) = (middle(found.x1, found.x2), middle(found.y1, found.y2));
    let a = (width / 2.0 - x).abs();
    let b = height / 2.0 - y;
    let gamma = (a / (b + arm.arm_radius)).atan();
    let dist = if gamma == 0.0 { b + arm.arm_radius } else { a / gamma.sin() };
    let delta = arm.rotation_range_as_pw * gamma.to_degrees() / arm.rotation_range_as_deg;
    let delta = if x > width / 2.0 { -delta } else { delta };
    let range = arm.dist_max_as_pw - arm.dist_min_as_pw;
    let servo1 = range * (dist - (arm.arm_radius - height / 2.0)) / height + arm.dist_min_as_pw;
    let servos = [f64::from(base) + delta, servo1];
    servos.iter().all(|s| s.is_finite()).then_some(servos)
}

/// Something seen on a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sighting {
    /// The pulse width of the picture.
    pub base: u32,
    /// Of the object in the database.
    pub id: i64,
    pub servos: Servos,
}

/// An object, seen once or more.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The mean of its sightings.
    pub servos: Servos,
    /// The sightings; the first one stands for it.
    pub seen: Vec<Sighting>,
}

/// Objects, each once: in the order of picture and id, the first sighting not yet taken takes all those whose pulse widths
/// both differ by less than [`SAME_WITHIN`] from its own.
#[must_use]
pub fn unique(mut sightings: Vec<Sighting>) -> Vec<Object> {
    sightings.sort_by_key(|s| (s.base, s.id));
    let mut objects = Vec::new();
    while !sightings.is_empty() {
        let first = sightings[0].servos;
        let near = |s: &Sighting| (0..2).all(|n| (s.servos[n] - first[n]).abs() < SAME_WITHIN);
        let (seen, rest): (Vec<_>, Vec<_>) =
            sightings.into_iter().enumerate().partition(|(n, s)| *n == 0 || near(s));
        let seen: Vec<Sighting> = seen.into_iter().map(|(_, s)| s).collect();
        sightings = rest.into_iter().map(|(_, s)| s).collect();
        let mean = |n: usize| seen.iter().map(|s| s.servos[n]).sum::<f64>() / seen.len() as f64;
        objects.push(Object { servos: [mean(0), mean(1)], seen });
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: ArmConstants = ArmConstants {
        arm_radius: 500.0,
        dist_max_as_pw: 2000.0,
        dist_min_as_pw: 1000.0,
        rotation_range_as_deg: 180.0,
        rotation_range_as_pw: 1800.0,
    };

    fn at(x: i32, y: i32) -> Found {
        Found { class: 0, score: 1.0, x1: x - 10, y1: y - 10, x2: x + 10, y2: y + 10 }
    }

    /// Pulse widths on a picture of 800 x 400, against values worked out by hand.
    #[track_caller]
    fn is(found: Found, want: Servos) {
        let got = servos(&found, 1500, (800, 400), &ARM).unwrap();
        assert!((0..2).all(|n| (got[n] - want[n]).abs() < 0.01), "{got:?} instead of {want:?}");
    }

    #[test]
    fn on_the_middle_line_the_base_stays() {
        // dist = 500 at the middle, 700 at the upper and 300 at the lower edge: 1500, 2000 and 1000.
        is(at(400, 200), [1500.0, 1500.0]);
        is(at(400, 0), [1500.0, 2000.0]);
        is(at(400, 400), [1500.0, 1000.0]);
    }

    #[test]
    fn both_sides_and_the_corners() {
        // a = 500 and b + r = 500 would be 45 degrees; here a = 300, b + r = 400: a 3-4-5 triangle, 36.8699 degrees, 500 away.
        is(at(100, 300), [1500.0 + 368.699, 1500.0]);
        is(at(700, 300), [1500.0 - 368.699, 1500.0]);
        // Upper left: a = 400, b + r = 700: 29.7449 degrees, 806.226 away.
        is(at(0, 0), [1500.0 + 297.449, 1000.0 * 506.226 / 400.0 + 1000.0]);
        // Lower right: a = 400, b + r = 300: 53.1301 degrees, 500 away.
        is(at(800, 400), [1500.0 - 531.301, 1500.0]);
    }

    #[test]
    fn middles_are_cut_off_to_whole_pixels() {
        let odd = Found { x1: 390, x2: 411, y1: 190, y2: 211, ..at(0, 0) };
        assert_eq!(servos(&odd, 1500, (800, 400), &ARM), servos(&at(400, 200), 1500, (800, 400), &ARM));
    }

    #[test]
    fn on_the_axis_there_is_no_way() {
        let arm = ArmConstants { arm_radius: 200.0, ..ARM };
        assert_eq!(servos(&at(400, 400), 1500, (800, 400), &arm), None);
    }

    fn seen(base: u32, id: i64, servos: Servos) -> Sighting {
        Sighting { base, id, servos }
    }

    #[test]
    fn one_object_on_several_pictures_is_one() {
        let objects = unique(vec![
            seen(1600, 3, [1000.0, 1200.0]),
            seen(1500, 1, [1100.0, 1100.0]),
            seen(1500, 2, [1250.0, 1100.0]),
            seen(1700, 9, [1249.0, 1249.0]),
        ]);
        // 1249 is within 150 of the first (1100), and 1250 is not: it differs by exactly 150.
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0].seen.iter().map(|s| s.id).collect::<Vec<_>>(), [1, 3, 9]);
        assert_eq!(objects[0].servos, [(1100.0 + 1000.0 + 1249.0) / 3.0, (1100.0 + 1200.0 + 1249.0) / 3.0]);
        assert_eq!(objects[1].seen, [seen(1500, 2, [1250.0, 1100.0])]);
        assert_eq!(unique(Vec::new()), []);
    }

    #[test]
    fn pictures_go_by_number_and_nearness_by_the_first() {
        // 900 comes before 1500 although "1500" < "900"; a chain is not followed beyond the first one's reach.
        let objects = unique(vec![
            seen(1500, 1, [1100.0, 1000.0]),
            seen(900, 7, [1000.0, 1000.0]),
            seen(1600, 2, [1200.0, 1000.0]),
        ]);
        let ids: Vec<Vec<i64>> = objects.iter().map(|o| o.seen.iter().map(|s| s.id).collect()).collect();
        assert_eq!(ids, [vec![7, 1], vec![2]]);
    }

    #[test]
    fn constants_that_are_no_use_are_named() {
        let good = serde_json::json!({
            "arm_radius": 1, "dist_max_as_pw": 2, "dist_min_as_pw": 3, "rotation_range_as_deg": 4, "rotation_range_as_pw": 5.5
        });
        assert_eq!(ArmConstants::from_json(&good).unwrap().rotation_range_as_pw, 5.5);
        for key in good.as_object().unwrap().keys() {
            for bad in [Value::Null, "7".into()] {
                let mut with = good.clone();
                with[key] = bad;
                assert!(ArmConstants::from_json(&with).unwrap_err().contains(key.as_str()));
            }
        }
        let mut still = good;
        still["rotation_range_as_deg"] = 0.into();
        assert!(ArmConstants::from_json(&still).is_err());
    }
}
