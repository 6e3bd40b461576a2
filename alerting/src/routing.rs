//! The routing tree with everything inherited, and which of its nodes an alert reaches.
//!
//! Not here: what happens to an alert there (`dispatch.rs`).

use std::time::Duration;

use crate::config::{Config, Route};
use crate::labels::LabelSet;
use crate::matcher::{self, Matcher};

const GROUP_WAIT: Duration = Duration::from_secs(30);
const GROUP_INTERVAL: Duration = Duration::from_secs(5 * 60);
const REPEAT_INTERVAL: Duration = Duration::from_secs(4 * 60 * 60);

/// A node of the tree, with what it has inherited.
#[derive(Clone, Debug)]
pub struct Node {
    /// Matchers from the root, as the first part of group keys: `{}/{a="b"}`.
    pub key: String,
    /// The key made unique by the node's place among its siblings: `{}/{a="b"}/0`.
    pub id: String,
    /// The receiver's name.
    pub receiver: String,
    /// Labels that make a group; `None` is every label.
    pub group_by: Option<Vec<String>>,
    /// How long a new group waits.
    pub group_wait: Duration,
    /// How long a group waits between changes.
    pub group_interval: Duration,
    /// After how long an unchanged group is told again.
    pub repeat_interval: Duration,
    /// Times of silence.
    pub mute_time_intervals: Vec<String>,
    /// The only times of speech, if there are any.
    pub active_time_intervals: Vec<String>,
    matchers: Vec<Matcher>,
    continues: bool,
    children: Vec<usize>,
}

/// The tree, flat: children are numbers.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Builds the tree of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let root = Node {
            key: "{}".to_owned(),
            id: "{}".to_owned(),
            receiver: config.route.receiver.clone().unwrap_or_default(),
            group_by: Some(Vec::new()),
            group_wait: GROUP_WAIT,
            group_interval: GROUP_INTERVAL,
            repeat_interval: REPEAT_INTERVAL,
            mute_time_intervals: Vec::new(),
            active_time_intervals: Vec::new(),
            matchers: Vec::new(),
            continues: false,
            children: Vec::new(),
        };
        let mut tree = Self { nodes: Vec::new() };
        tree.add(&config.route, root);
        tree
    }

    /// Adds a route under a node that has the parent's values, and its children after it. The depth is
    /// bounded by the configuration's reader.
    fn add(&mut self, route: &Route, inherited: Node) -> usize {
        let index = self.nodes.len();
        let mut node = inherited;
        node.children = Vec::new();
        if let Some(receiver) = &route.receiver {
            node.receiver.clone_from(receiver);
        }
        if route.group_by_all {
            node.group_by = None;
        } else if let Some(labels) = &route.group_by {
            node.group_by = Some(labels.clone());
        }
        node.group_wait = route.group_wait.unwrap_or(node.group_wait);
        node.group_interval = route.group_interval.unwrap_or(node.group_interval);
        node.repeat_interval = route.repeat_interval.unwrap_or(node.repeat_interval);
        node.mute_time_intervals.clone_from(&route.mute_time_intervals);
        node.active_time_intervals.clone_from(&route.active_time_intervals);
        node.matchers.clone_from(&route.matchers);
        node.continues = route.continues;
        self.nodes.push(node.clone());
        for (place, child) in route.routes.iter().enumerate() {
            let matchers = matcher::format_all(&child.matchers);
            let key = format!("{}/{matchers}", node.key);
            let id = format!("{}/{matchers}/{place}", node.id);
            let child = self.add(child, Node { key, id, ..node.clone() });
            self.nodes[index].children.push(child);
        }
        index
    }

    /// A node by its number.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The number of the node with an id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    /// The nodes an alert reaches: of each node's children the first that matches, and those after it
    /// for as long as they say `continue`; the node itself where no child does.
    #[must_use]
    pub fn matching(&self, labels: &LabelSet) -> Vec<usize> {
        let mut reached = Vec::new();
        self.walk(0, labels, &mut reached);
        reached
    }

    fn walk(&self, index: usize, labels: &LabelSet, reached: &mut Vec<usize>) -> bool {
        let node = &self.nodes[index];
        if !matcher::all_match(&node.matchers, labels) {
            return false;
        }
        let before = reached.len();
        for child in &node.children {
            if self.walk(*child, labels, reached) && !self.nodes[*child].continues {
                break;
            }
        }
        if reached.len() == before {
            reached.push(index);
        }
        true
    }
}

impl Node {
    /// The labels that say which of the node's groups an alert is in.
    #[must_use]
    pub fn group_labels(&self, labels: &LabelSet) -> LabelSet {
        match &self.group_by {
            None => labels.clone(),
            Some(names) => names.iter().filter_map(|name| Some((name.as_str(), labels.find(name)?))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const TREE: &str = r#"
route:
  receiver: root
  group_by: [alertname]
  group_wait: 1s
  routes:
    - matchers: [team="a"]
      receiver: a
      group_wait: 2s
      routes:
        - matchers: [severity="critical"]
          receiver: a-page
          continue: true
          group_by: ['...']
        - match_re: {severity: 'critical|warning'}
          receiver: a-chat
          repeat_interval: 1h
    - matchers: [audit="yes"]
      receiver: audit
      continue: true
    - matchers: [team="b"]
      receiver: b
    - matchers: [team="b"]
      receiver: never
receivers: [{name: root}, {name: a}, {name: a-page}, {name: a-chat}, {name: audit}, {name: b}, {name: never}]
"#;

    fn tree() -> Tree {
        let parsed = config::parse(TREE);
        Tree::new(&parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.problems)))
    }

    #[test]
    fn an_alert_reaches_the_deepest_matching_nodes() {
        let tree = tree();
        let rows = [
            ("x=1", "root"),
            ("team=a", "a"),
            ("team=a,severity=critical", "a-page a-chat"),
            ("team=a,severity=warning", "a-chat"),
            ("team=a,severity=criticality", "a"),
            ("team=b", "b"),
            ("team=b,audit=yes", "audit b"),
            ("audit=yes", "audit"),
            ("team=a,audit=yes", "a"),
        ];
        for (labels, want) in rows {
            let set: LabelSet = labels.split(',').filter_map(|pair| pair.split_once('=')).collect();
            let got: Vec<&str> =
                tree.matching(&set).into_iter().map(|node| tree.node(node).receiver.as_str()).collect();
            assert_eq!(got.join(" "), want, "{labels}");
        }
    }

    #[test]
    fn nodes_inherit_and_are_named_by_their_matchers() {
        let tree = tree();
        let set: LabelSet = [("team", "a"), ("severity", "critical"), ("alertname", "x")].into_iter().collect();
        let reached = tree.matching(&set);
        let (page, chat) = (tree.node(reached[0]), tree.node(reached[1]));
        assert_eq!(page.key, r#"{}/{team="a"}/{severity="critical"}"#);
        assert_eq!(chat.key, r#"{}/{team="a"}/{severity=~"^(?:critical|warning)$"}"#);
        assert_eq!(chat.id, r#"{}/{team="a"}/0/{severity=~"^(?:critical|warning)$"}/1"#);
        assert_eq!(tree.find(&chat.id), Some(reached[1]));
        assert_eq!((page.group_wait, chat.repeat_interval), (Duration::from_secs(2), Duration::from_secs(3_600)));
        assert_eq!(page.group_labels(&set), set);
        assert_eq!(chat.group_labels(&set).to_string(), r#"{alertname="x"}"#);
    }
}
