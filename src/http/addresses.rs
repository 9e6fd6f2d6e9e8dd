//! What addresses there are: below which path, and by which template.

use std::sync::Arc;

use matchit::Router;
use utoipa::openapi::OpenApi;

/// The addresses of a service.
#[derive(Default)]
pub struct Addresses {
    base: String,
    templates: Router<Arc<str>>,
}

impl Addresses {
    /// Those of the document, each beginning with `base`.
    pub fn new(base: &str, document: &OpenApi) -> Self {
        let mut templates = Router::new();
        for template in document.paths.paths.keys() {
            templates.insert(template, Arc::from(template.as_str())).expect("the router has taken them");
        }
        Self { base: base.to_owned(), templates }
    }

    /// An address without what all of them begin with. What does not lie there is nowhere.
    pub fn beneath<'p>(&self, path: &'p str) -> &'p str {
        path.strip_prefix(&self.base).filter(|rest| rest.starts_with('/')).unwrap_or_default()
    }

    /// The template of an address, as in `/streams/{id}`: one of a few, whatever is asked for.
    pub fn template(&self, path: &str) -> Option<&Arc<str>> {
        self.templates.at(self.beneath(path)).ok().map(|found| found.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_template_of_the_document() {
        let addresses = Addresses::new("/store", &crate::http::document());
        let template = |path| addresses.template(path).map(|template| &**template);
        assert_eq!(template("/store/streams/order-1"), Some("/streams/{id}"));
        assert_eq!(template("/store/groups/g/parked/replay"), Some("/groups/{group}/parked/replay"));
        for nowhere in ["/streams/order-1", "/storestreams/order-1", "/store", "/store/", "/store/streams/a/b", ""] {
            assert_eq!(template(nowhere), None, "{nowhere}");
        }
    }
}
