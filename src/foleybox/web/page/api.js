// Shows what /openapi.json says, as a page.

import { h } from "./dom.js";
import { t } from "./strings.js";

/** Return the properties of a parameter or a body, { name: schema }. */
function propertiesOf(operation, schemas) {
  const named = (operation.parameters ?? []).map((each) => [each.name, { ...each.schema, description: each.description }]);
  const reference = operation.requestBody?.content["application/json"]?.schema.$ref;
  const body = reference ? schemas[reference.split("/").pop()].properties : {};
  return { ...Object.fromEntries(named), ...body };
}

function kindOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(kindOf).filter((kind) => kind !== "null").join(" or ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(", ");
  return schema.items ? `list of ${kindOf(schema.items)}` : schema.type ?? "";
}

const response = await fetch("openapi.json");
const { paths, components } = await response.json();
for (const [path, operations] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const rows = Object.entries(propertiesOf(operation, components.schemas)).map(([name, schema]) => [
      h("dt", {}, h("code", {}, name)),
      h("dd", {}, [kindOf(schema), schema.description, schema.default !== undefined && t("defaultIs", { value: JSON.stringify(schema.default) })].filter(Boolean).join("; ")),
    ]);
    document
      .getElementById("addresses")
      .append(h("h2", {}, h("code", {}, `${method.toUpperCase()} ${path}`)), h("p", {}, operation.description ?? ""), h("dl", { class: "keys" }, rows));
  }
}
