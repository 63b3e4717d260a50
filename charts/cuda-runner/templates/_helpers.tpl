{{/* Takes out what is null: kept, it would differ from the live object for ever. A pod template's nulls are its own. */}}
{{- define "cuda-runner.dropNull" -}}
{{- range $key, $value := . -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $ $key -}}
{{- else if and (kindIs "map" $value) (ne $key "template") -}}
{{- include "cuda-runner.dropNull" $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
