//! From what was seen in a session to the moves that sort it. No I/O, no OpenCV: grouping by looks is the caller's.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::album::Wanted;
use crate::found::Found;
use crate::geometry::{self, ArmConstants, Object, Servos, Sighting};
use crate::message::ImageName;

/// A picture of the session and what was found on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    pub name: ImageName,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Of its bytes, hexadecimal, where it is known.
    pub sha256: Option<String>,
    /// With their ids in the database.
    pub objects: Vec<(i64, Found)>,
}

impl Shot {
    /// Its picture.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted { name: self.name.file(), size: Some(self.size), sha256: self.sha256.clone() }
    }
}

/// Where everything is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scene {
    pub items: Vec<Object>,
    /// At most as many as items: the excess is left out.
    pub containers: Vec<Object>,
    /// Where each box of the session leads the arm, by id.
    pub servos: BTreeMap<i64, Servos>,
}

impl Scene {
    /// Locates what was found. A box that the arm can't be led to is left out.
    #[must_use]
    pub fn locate(shots: &[Shot], arm: &ArmConstants) -> Self {
        let (mut items, mut containers, mut all) = (Vec::new(), Vec::new(), BTreeMap::new());
        for shot in shots {
            for (id, found) in &shot.objects {
                let Some(servos) = geometry::servos(found, shot.name.0, shot.size, arm) else { continue };
                let sighting = Sighting { base: shot.name.0, id: *id, servos };
                all.insert(*id, servos);
                if found.is_item() { items.push(sighting) } else { containers.push(sighting) }
            }
        }
        let items = geometry::unique(items);
        let mut containers = geometry::unique(containers);
        containers.truncate(items.len());
        Self { items, containers, servos: all }
    }

    /// Whether there is something to sort, and something to sort it into.
    #[must_use]
    pub fn can_be_sorted(&self) -> bool {
        !self.items.is_empty() && !self.containers.is_empty()
    }
}

/// The moves, and how they came about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    pub scene: Scene,
    /// The group of each item; group `i` goes to container `i`.
    pub groups: Vec<usize>,
}

impl Plan {
    /// The answer to the arm: for each item where to take it and where to drop it.
    #[must_use]
    pub fn commands(&self) -> Vec<[Servos; 2]> {
        let target = |group: &usize| self.scene.containers.get(*group).map(|c| c.servos);
        let pairs = self.scene.items.iter().zip(&self.groups);
        pairs.filter_map(|(item, group)| Some([item.servos, target(group)?])).collect()
    }

    /// The group of each box, by id.
    #[must_use]
    pub fn group_of(&self) -> BTreeMap<i64, usize> {
        let items = self.scene.items.iter().zip(self.groups.iter().copied());
        let containers = self.scene.containers.iter().zip(0..);
        items.chain(containers).flat_map(|(o, group)| o.seen.iter().map(move |s| (s.id, group))).collect()
    }

    /// What is kept of it for the page.
    #[must_use]
    pub fn json(&self) -> Value {
        let groups = self.group_of();
        let objects: serde_json::Map<String, Value> = self
            .scene
            .servos
            .iter()
            .map(|(id, servos)| (id.to_string(), json!({ "group": groups.get(id), "servo": servos })))
            .collect();
        let containers: Vec<Value> = self
            .scene
            .containers
            .iter()
            .enumerate()
            .map(|(group, c)| json!({ "servo": c.servos, "group": group }))
            .collect();
        json!({ "commands": self.commands(), "containers": containers, "objects": objects })
    }
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

    fn at(class: u32, x: i32, y: i32) -> Found {
        Found { class, score: 1.0, x1: x - 10, y1: y - 10, x2: x + 10, y2: y + 10 }
    }

    fn shot(base: u32, objects: Vec<(i64, Found)>) -> Shot {
        Shot { name: ImageName(base), size: (800, 400), sha256: None, objects }
    }

    #[test]
    fn items_go_to_the_container_of_their_group() {
        // Along the middle line servo1 is 1500 + (200 - y) * 2.5.
        let shots = [
            shot(2000, vec![(1, at(1, 400, 0)), (2, at(0, 400, 400))]),
            shot(1000, vec![(3, at(1, 400, 0)), (4, at(0, 400, 200)), (5, at(0, 400, 380))]),
        ];
        let scene = Scene::locate(&shots, &ARM);
        assert_eq!(scene.items.iter().map(|i| i.seen[0].id).collect::<Vec<_>>(), [4, 5, 2]);
        let plan = Plan { scene, groups: vec![0, 1, 0] };
        let (first, second) = ([1000.0, 2000.0], [2000.0, 2000.0]);
        assert_eq!(
            plan.commands(),
            [[[1000.0, 1500.0], first], [[1000.0, 1050.0], second], [[2000.0, 1000.0], first]]
        );
        let groups = plan.group_of();
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), [(1, 1), (2, 0), (3, 0), (4, 0), (5, 1)]);
        assert_eq!(plan.json()["objects"]["5"], json!({ "group": 1, "servo": [1000.0, 1050.0] }));
    }

    #[test]
    fn more_containers_than_items_and_none() {
        let shots = [shot(1000, vec![(1, at(1, 400, 0)), (2, at(2, 400, 200)), (3, at(0, 400, 400))])];
        let scene = Scene::locate(&shots, &ARM);
        assert_eq!(scene.containers.iter().map(|c| c.seen[0].id).collect::<Vec<_>>(), [1]);
        assert!(scene.can_be_sorted());
        for objects in [vec![], vec![(1, at(1, 400, 0))], vec![(1, at(0, 400, 0))]] {
            let scene = Scene::locate(&[shot(1000, objects)], &ARM);
            assert!(!scene.can_be_sorted());
            assert_eq!(Plan { scene, groups: vec![] }.commands(), Vec::<[Servos; 2]>::new());
        }
    }
}
