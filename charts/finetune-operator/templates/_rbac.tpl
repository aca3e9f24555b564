{{/* Permissions of the operator in a namespace that it serves. It reads no Secrets: the kubelet mounts them into the
tenants' pods. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [get, patch]
# The owner references of children have blockOwnerDeletion. Clusters with OwnerReferencesPermissionEnforcement require
# the permission to update the owner's finalizers for this. The admission policy finetune-trainer recognizes the
# operator of a namespace by this permission, so nobody else may have it.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# The bundle: one immutable ConfigMap per FineTuneJob. It is deleted with the Jobs if the job has a time to live.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
# The training pods of a job on several nodes find each other through a headless Service, and its NetworkPolicy lets only
# them reach each other. They are deleted with the Jobs if the job has a time to live.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
# The identity of the trainers: one ServiceAccount per namespace, bound to one role only. The operator watches both, so
# that it creates them again after somebody has deleted them.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, list, watch, create]
# The ClusterRole finetune-trainer may belong to a release of another version. With `bind` the operator can bind it even
# if it contains a permission that the operator itself does not have. The API server asks for `bind` in the namespace of
# the new RoleBinding, so a Role with this rule permits RoleBindings in its own namespace only.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [finetune-trainer]
  verbs: [bind]
# Reads the claims of pvc:// URIs, so that a job with a missing claim says so before a pod starts.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
# Creates Events about FineTuneJobs. Lists the Events of Jobs and pods that do not start, because they name the cause.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- if .Values.kueue.enabled }}
# Reads what a Job that Kueue suspends waits for.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
# Checks whether a tenant's own ServiceAccount may write the status, before a pod starts.
- apiGroups: [authorization.k8s.io]
  resources: [localsubjectaccessreviews]
  verbs: [create]
{{- end -}}

{{/* Permissions of every operator in the cluster, because FineTuneProfiles and nodes have no namespace. */}}
{{- define "finetune-operator.profileRules" -}}
- apiGroups: [finetune.dev]
  resources: [finetuneprofiles]
  verbs: [get, list, watch]
# Reads the node of a pod that is being deleted: one that is gone never reports the pod's end.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
# Reads whether a lost node still holds the volume of an output that one node at a time can mount.
- apiGroups: [storage.k8s.io]
  resources: [volumeattachments]
  verbs: [list]
{{- end -}}
