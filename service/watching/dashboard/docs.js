// The API's documentation: swagger-ui with this service's openapi.json and this tab's token.
// No validator badge: it would come from another host.
window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null,
  requestInterceptor(request) {
    const token = sessionStorage.getItem("logstep-token");
    if (token && !request.headers.Authorization) request.headers.Authorization = `Bearer ${token}`;
    return request;
  },
});
