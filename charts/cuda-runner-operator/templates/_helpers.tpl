{{/* Start of every object's name, at most 53 characters so that suffixes fit. */}}
{{- define "cuda-runner-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of the Service that runner pods reach the registrar by. */}}
{{- define "cuda-runner-operator.registrar" -}}
{{- printf "%s-registrar" (include "cuda-runner-operator.fullname" .) -}}
{{- end -}}

{{- define "cuda-runner-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "cuda-runner-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The labels by which the operator's pods are found: never change them, a Deployment's selector cannot change. */}}
{{- define "cuda-runner-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "cuda-runner-operator.labels" -}}
{{ include "cuda-runner-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The same labels as a selector. */}}
{{- define "cuda-runner-operator.selector" -}}
{{- include "cuda-runner-operator.selectorLabels" . | replace ": " "=" | replace "\n" "," -}}
{{- end -}}

{{/* Labels of what runs after the operator: not those that its pods are found by. */}}
{{- define "cuda-runner-operator.hookLabels" -}}
app.kubernetes.io/name: {{ printf "%s-uninstall" (include "cuda-runner-operator.fullname" .) }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Annotations of what is made after the release is gone, in the order of this weight, and goes again. */}}
{{- define "cuda-runner-operator.hook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-failed
{{- end -}}

{{/* What the Job does that lets go of the pools. */}}
{{- define "cuda-runner-operator.uninstallRules" -}}
- apiGroups: [cudarunner.dev]
  resources: [cudarunners]
  verbs: [list, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* Whom the operator, and what follows it, may reach where a NetworkPolicy is wanted. */}}
{{- define "cuda-runner-operator.egress" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
# By port alone: the addresses of GitHub change, and network plugins disagree on how to name the API server's.
- ports:
    {{- range .Values.networkPolicy.egressPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}

{{/* Where the operator, and what follows it, may run. */}}
{{- define "cuda-runner-operator.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or .Values.tolerations .Values.nodeTaint.enabled }}
tolerations:
  {{- with .Values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .Values.nodeTaint.enabled }}
  # Whoever takes the taint off again must not be kept off by it, and what follows the operator neither.
  - {key: cudarunner.dev/cuda-smoke-failed, operator: Exists, effect: NoSchedule}
  {{- end }}
{{- end }}
{{- end -}}

{{/* An image reference: (dict "image" .Values.image "key" "image" "root" .) */}}
{{- define "cuda-runner-operator.image" -}}
{{- $missing := printf "%s.repository is not set: no image is published yet, so build one (see CONTRIBUTING.md), push it to a registry that your nodes reach, and name it here" .key -}}
{{- $repository := required $missing .image.repository -}}
{{- if regexMatch "@|:[^/]*$" $repository -}}
{{- fail (printf "%s.repository has a tag or a digest (%s): write that into %s.tag, a digest as TAG@sha256:…" .key $repository .key) -}}
{{- end -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}

{{/* What the operator does in a namespace that it serves. Cluster-wide it is the body of a ClusterRole. */}}
{{- define "cuda-runner-operator.poolRules" -}}
- apiGroups: [cudarunner.dev]
  resources: [cudarunners]
  verbs: [list, watch, patch]
- apiGroups: [cudarunner.dev]
  resources: [cudarunners/status]
  verbs: [patch]
# Owner references that block the owner's deletion need this where the cluster enforces it.
- apiGroups: [cudarunner.dev]
  resources: [cudarunners/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  # When a gate has passed, its container gets the runner's image, or its job's: that is the patch.
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.rbac.jobContainers }}
# The services of jobs with containers.
- apiGroups: [""]
  resources: [pods/ephemeralcontainers]
  verbs: [patch]
# Their credentials and their services' environment, in a Secret of the runner's pod. A creation cannot be limited to a name.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
{{- end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What has no namespace, or may be in any: TokenReviews to know who asks the registrar, Nodes to plan by, where all are its
own, and the Leases of other operators that pools name. */}}
{{- define "cuda-runner-operator.clusterRules" -}}
{{- if not .Values.watchNamespaces }}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end }}
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get]
{{- end -}}

{{- /* The ClusterRole of the taints of devices, which the rules belong to. */}}
{{- define "cuda-runner-operator.devices" -}}
{{ printf "%s:%s-devices" .Release.Namespace (include "cuda-runner-operator.fullname" .) }}
{{- end }}
