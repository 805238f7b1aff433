//! From the method that a recipe names to what is generic over methods.

/// Evaluates an expression with the method of a recipe on its layers, as the type that it has:
/// `with_method!(recipe, |method| use_it(&method))`. With two expressions, the first is for methods
/// that end in codes, the second for those that keep their update beside the weight.
macro_rules! with_method {
    ($recipe:expr, |$method:ident| $use:expr) => {
        with_method!($recipe, codes: |$method| $use, beside: |$method| $use)
    };
    ($recipe:expr, codes: |$coded:ident| $codes:expr, beside: |$kept:ident| $beside:expr) => {{
        use plumbline::recipe::MethodSettings;
        let recipe = $recipe;
        match &recipe.settings {
            MethodSettings::L4q(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::LrQat(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::Peqa(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::QaLora(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::Qat(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::Qlora(settings) => {
                let $coded = recipe.on(settings);
                $codes
            }
            MethodSettings::Lora(settings) => {
                let $kept = recipe.on(settings);
                $beside
            }
            MethodSettings::QatLora(settings) => {
                let $kept = recipe.on(settings);
                $beside
            }
        }
    }};
}

pub(crate) use with_method;
