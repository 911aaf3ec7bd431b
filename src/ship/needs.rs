//! Which services' images are made from which: the order in which they are built.
//!
//! A recipe may name another service of the project as an input. Everything else is independent, and is built in the order of names.

use std::collections::{BTreeMap, BTreeSet};

use jiji_model::name::ServiceName;

use super::ShipError;

/// What each service needs: services of the project, and names that are none.
pub(super) type Needs = BTreeMap<ServiceName, BTreeSet<String>>;

/// Services that need each other: from one to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Circle(pub(super) Vec<ServiceName>);

impl From<Circle> for ShipError {
    fn from(Circle(way): Circle) -> Self {
        let names: Vec<_> = way.iter().map(ServiceName::as_str).collect();
        Self::Circle { service: way[0].clone(), way: names.join(" → ") }
    }
}

/// The wanted ones of all services and those that they need, each after those that it needs. `needs` says what a service needs, and is asked once
/// for each.
///
/// # Errors
/// What `needs` says, and [`Circle`].
pub(super) fn order<'a, E: From<Circle>>(
    all: impl IntoIterator<Item = &'a ServiceName>,
    wanted: impl IntoIterator<Item = &'a ServiceName>,
    needs: &mut dyn FnMut(&ServiceName) -> Result<BTreeSet<String>, E>,
) -> Result<(Vec<ServiceName>, Needs), E> {
    let all = all.into_iter().map(|service| (service.as_str(), service)).collect();
    let mut search = Search { all, needs, way: Vec::new(), order: Vec::new(), known: Needs::new() };
    for service in wanted {
        search.visit(service)?;
    }
    Ok((search.order, search.known))
}

struct Search<'a, 'n, E> {
    all: BTreeMap<&'a str, &'a ServiceName>,
    needs: &'n mut dyn FnMut(&ServiceName) -> Result<BTreeSet<String>, E>,
    /// From a wanted service to the one that is looked at.
    way: Vec<&'a ServiceName>,
    order: Vec<ServiceName>,
    known: Needs,
}

impl<'a, E: From<Circle>> Search<'a, '_, E> {
    fn visit(&mut self, service: &'a ServiceName) -> Result<(), E> {
        if let Some(begin) = self.way.iter().position(|earlier| *earlier == service) {
            let way = self.way[begin..].iter().chain([&service]);
            return Err(Circle(way.map(|service| (*service).clone()).collect()).into());
        }
        if self.known.contains_key(service) {
            return Ok(());
        }
        let needed = (self.needs)(service)?;
        self.way.push(service);
        for name in &needed {
            // What the project has not is told where it is named.
            if let Some(needed) = self.all.get(name.as_str()).copied() {
                self.visit(needed)?;
            }
        }
        self.way.pop();
        self.known.insert(service.clone(), needed);
        self.order.push(service.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(needs: &[(&str, &[&str])], wanted: &[&str]) -> Result<Vec<String>, Vec<String>> {
        let name = |text: &str| ServiceName::new(text).expect("a service");
        let all: Vec<_> = needs.iter().map(|(service, _)| name(service)).collect();
        let wanted: Vec<_> = wanted.iter().map(|text| name(text)).collect();
        let mut asked = Vec::new();
        let found = order::<Circle>(&all, &all_of(&all, &wanted), &mut |service| {
            assert!(!asked.contains(service), "{service} is asked once");
            asked.push(service.clone());
            let (_, needed) = needs.iter().find(|(own, _)| *own == service.as_str()).expect("one of them");
            Ok(needed.iter().map(|name| (*name).to_owned()).collect())
        });
        let texts = |names: Vec<ServiceName>| names.iter().map(ToString::to_string).collect();
        found.map(|(order, _)| texts(order)).map_err(|Circle(way)| texts(way))
    }

    /// Those of all that are wanted.
    fn all_of(all: &[ServiceName], wanted: &[ServiceName]) -> Vec<ServiceName> {
        all.iter().filter(|service| wanted.contains(service)).cloned().collect()
    }

    #[test]
    fn what_a_service_needs_comes_before_it_and_what_nobody_needs_does_not_come() {
        let needs: &[(&str, &[&str])] =
            &[("a", &["m", "gone"]), ("b", &[]), ("m", &["x"]), ("o", &["m", "x"]), ("x", &[])];
        assert_eq!(
            ordered(needs, &["a", "b", "m", "o", "x"]),
            Ok(["x", "m", "a", "b", "o"].map(str::to_owned).to_vec())
        );
        assert_eq!(ordered(needs, &["o"]), Ok(["x", "m", "o"].map(str::to_owned).to_vec()));
        assert_eq!(ordered(needs, &["b"]), Ok(vec!["b".to_owned()]));
    }

    #[test]
    fn services_that_need_each_other_are_told_from_one_to_itself() {
        let needs: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &["d"])];
        assert_eq!(ordered(needs, &["a"]), Err(["b", "c", "b"].map(str::to_owned).to_vec()));
        assert_eq!(ordered(needs, &["d"]), Err(["d", "d"].map(str::to_owned).to_vec()));
        let error =
            ShipError::from(Circle(["b", "c", "b"].map(|text| ServiceName::new(text).expect("a name")).to_vec()));
        assert_eq!(error.to_string(), "build `b`: its image is made from itself, b → c → b");
    }
}
